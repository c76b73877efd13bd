"""Commands that are shown to be copied hold paths as one word: a walk through the sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_structure import MODULES, _name, breaches, source

_COMMAND = re.compile(
    r"(?:diablo-ds [a-z]+|tensorboard|chmod|sbatch|scancel|srun)(?: [^\s`;,]+)* $"
)
"""A command up to the place of a value, as the end of a text."""
_OWN = {"family"}
"""Values that are this program's own words."""


def unquoted(tree: ast.AST, name: str) -> Iterator[str]:
    """Yield the values that stand in a command as they are, with their lines."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr):
            continue
        before = ""
        for part in node.values:
            if isinstance(part, ast.Constant):
                before += str(part.value)
            elif isinstance(part, ast.FormattedValue):
                value = ast.unparse(part.value)
                is_own = value in _OWN or value.startswith("shlex.")
                if _COMMAND.search(before) and not is_own:
                    yield f"{name}, line {node.lineno}: {value}"
                before += "VALUE"


def _unquoted(path: Path) -> Iterator[str]:
    return unquoted(ast.parse(source(path).text), _name(path))


def test_a_path_in_a_shown_command_is_one_word():
    assert breaches(_unquoted, MODULES) == {}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('f"Status: diablo-ds status {path}"', 1),
        ('f"`chmod -R go-w {folder}` it"', 1),
        ('f"tensorboard --logdir {a} --port {b}"', 2),
        ('f"sbatch {shlex.quote(path)}"', 0),
        ('f"run folder {path}, see diablo-ds status"', 0),
    ],
)
def test_an_unquoted_path_is_found(text, count):
    assert len(list(unquoted(ast.parse(text), "a"))) == count
