"""Programs in answers: found in fenced blocks, or the answer itself."""

from __future__ import annotations

import re
import textwrap

SAMPLED_METRICS = ("pass@1", "pass@5", "pass@10")
_FENCE = re.compile(
    r"^[ \t]*```[ \t]*(?P<language>[\w+-]*)[^\n]*\n(?P<code>.*?)(?:^[ \t]*```|\Z)", re.M | re.S
)
_PYTHON = ("", "python", "python3", "py")


def definition_start(code: str, name: str) -> int | None:
    """Return where the last definition of a function or class at the top level begins, if any."""
    pattern = rf"^(?:async\s+)?(?:def|class)\s+{re.escape(name)}\b"
    starts = [match.start() for match in re.finditer(pattern, code, re.M)]
    return starts[-1] if starts else None


def find_code(answer: str, name: str = "") -> str:
    """Return the program in an answer.

    Args:
        answer: a program, or text with programs in fenced blocks, of which the last may be open.
        name: of the function that it must define; the last block that does so is taken, as answers
            may correct themselves. Without one, or where none does, it is all blocks together.

    Returns:
        The code; the unchanged answer if it has no block of Python.
    """
    found = [m["code"] for m in _FENCE.finditer(answer) if m["language"].lower() in _PYTHON]
    if name:
        # A block in a list may be indented as a whole.
        forms = [form for code in found for form in (textwrap.dedent(code), code)]
        defining = [form for form in forms if definition_start(form, name) is not None]
        if defining:
            return defining[-1]
    return "\n".join(found) if found else answer
