"""The commands that the documents show, as a reader would copy them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
PROGRAMS = ("deepspeed", "diablo-ds", "make", "python", "pip")
"""First words of commands of this project and of those it is used with."""
_SHELLS = ("", "sh", "bash", "shell", "console")
_FENCE = re.compile(r" *(```|~~~)(\w*)")


class Command(NamedTuple):
    """A command that a document shows."""

    words: tuple[str, ...]
    is_mention: bool = False
    """Whether it is part of a sentence, where options may stand without their values."""


def commands(text: str) -> list[Command]:
    """Return each command of a document once: of its code blocks, and inside its sentences.

    A line of a code block that goes on with a backslash is one with the next; what follows a `#`
    is a comment. An arrow makes a line part of a drawing.
    """
    prose, blocks = _split(text)
    found = []
    for block in blocks:
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            line = line.strip().removeprefix("$ ")
            if line.split(" ")[0] in PROGRAMS and " -> " not in line:
                found.append(Command(tuple(shlex.split(line, comments=True))))
    for span in re.findall(r"`([^`]+)`", prose):
        first, _, others = span.partition(" ")
        if first in PROGRAMS and others.strip():
            found.append(Command(tuple(shlex.split(span)), is_mention=True))
    return list(dict.fromkeys(found))


def _split(text: str) -> tuple[str, list[str]]:
    """Return a document's prose, its lines joined, and its code blocks of shells' commands."""
    prose: list[str] = []
    blocks: list[list[str]] = []
    fence, is_shell, is_code = "", False, False
    for line, before in _with_previous(text.splitlines()):
        match = _FENCE.match(line)
        if fence or match:
            if match and not fence:
                fence, is_shell = match[1], match[2] in _SHELLS
                blocks.append([])
            elif line.strip() == fence:
                fence = ""
            elif is_shell:
                blocks[-1].append(line)
        elif line.startswith("    ") and (is_code or not before.strip()):
            if not is_code:
                blocks.append([])
            is_code = True
            blocks[-1].append(line.strip())
        elif line.strip():
            is_code = False
            prose.append(line)
        elif is_code:
            blocks[-1].append("")
    return " ".join(prose), ["\n".join(lines) for lines in blocks]


def _with_previous(lines: list[str]) -> Iterator[tuple[str, str]]:
    yield from zip(lines, ["", *lines], strict=False)
