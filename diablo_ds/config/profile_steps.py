"""The steps that a run traces, as text such as 10-12."""

from __future__ import annotations

import re

from diablo_ds.errors import UserError

MOST_PROFILED_STEPS = 20
"""A trace is held in memory until its last step; a step of a large model is some 100,000 events."""
_FORM = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


def parse_profile_steps(text: str, num_steps: int = 0) -> range:
    """Return the steps that a text names, the run's first being 1; none for an empty text.

    Args:
        text: a step, or the first and the last of several.
        num_steps: of the run; 0 where that is not known yet.

    Raises:
        UserError: if it is neither, there are too many, or the run does not take one of them.
    """
    if not text:
        return range(0)
    match = _FORM.fullmatch(text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise UserError(
            "profile_steps must be a step, or the first and the last of several, as in 10-12; got "
            f"profile_steps={text!r:.60}"
        )
    if last - first >= MOST_PROFILED_STEPS:
        raise UserError(
            f"profile_steps must be at most {MOST_PROFILED_STEPS} steps, whose trace is held in "
            f"memory; got profile_steps={text!r}, {last - first + 1} steps"
        )
    if num_steps and last > num_steps:
        raise UserError(
            f"profile_steps must be steps of the run; got profile_steps={text!r}, and the run has "
            f"{num_steps}"
        )
    return range(first, last + 1)
