"""Commands, Python, links and names in the documents, as a reader would use them."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "SECURITY.md",
        *(ROOT / "docs").rglob("*.md"),
    ],
)
PROGRAMS = ("deepspeed", "diablo-ds", "make", "python", "pip")
"""First words of commands of this project and of those it is used with."""
_SHELLS = ("", "sh", "bash", "shell", "console")
_FENCE = re.compile(r" *(```|~~~)(\w*)")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


class Command(NamedTuple):
    """A command that a document shows."""

    words: tuple[str, ...]
    is_mention: bool = False
    """Whether it is part of a sentence, where options may stand without their values."""


def commands(text: str) -> list[Command]:
    """Return each command of a document once: of its code blocks, and inside its sentences.

    A line of a code block that ends in a backslash continues on the next; what follows a `#` is a
    comment. An arrow makes a line part of a drawing.
    """
    found = []
    for language, block in _split(text)[1]:
        if language not in _SHELLS:
            continue
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            line = line.strip().removeprefix("$ ")
            if line.split(" ")[0] in PROGRAMS and " -> " not in line:
                found.append(Command(tuple(shlex.split(line, comments=True))))
    for span in spans(text):
        first, _, others = span.partition(" ")
        if first in PROGRAMS and others.strip():
            found.append(Command(tuple(shlex.split(span)), is_mention=True))
    return list(dict.fromkeys(found))


def spans(text: str) -> list[str]:
    """Return what stands between backticks in a document's sentences, line breaks as blanks."""
    return re.findall(r"`([^`]+)`", " ".join(_split(text)[0]))


def python_blocks(text: str) -> list[str]:
    """Return the Python programs that a document shows."""
    return [block for language, block in _split(text)[1] if language == "python"]


def links(text: str) -> list[str]:
    """Return the targets of a document's links, each once."""
    prose = " ".join(_split(text)[0])
    return list(dict.fromkeys(_LINK.findall(re.sub(r"`[^`]*`", "", prose))))


def anchors(text: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub forms them."""
    headings = re.findall(r"^#+ (.*)$", "\n".join(_split(text)[0]), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _split(text: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Return a document's lines of prose, and its code blocks, each with its language.

    An indented block has the language "".
    """
    prose: list[str] = []
    blocks: list[tuple[str, list[str]]] = []
    fence, is_indented, previous = "", False, ""
    for line in text.splitlines():
        match = _FENCE.match(line)
        if fence:
            if line.strip() == fence:
                fence = ""
            else:
                blocks[-1][1].append(line)
        elif match:
            fence, is_indented = match[1], False
            blocks.append((match[2], []))
        elif line.startswith("    ") and (is_indented or not previous.strip()):
            if not is_indented:
                blocks.append(("", []))
            is_indented = True
            blocks[-1][1].append(line)
        elif line.strip():
            is_indented = False
            prose.append(line)
        elif is_indented:
            blocks[-1][1].append("")
        previous = line
    return prose, [(language, "\n".join(lines)) for language, lines in blocks]


def check_extra(arguments):
    """The extra that pip is asked for exists."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [word for word in arguments if word.startswith(".[")]
    for word in wanted:
        assert set(word[2:-1].split(",")) <= set(extras["optional-dependencies"])
