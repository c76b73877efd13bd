"""How many questions of each task are asked: `evaluate --limit` and `train --eval-task-limit`."""

from __future__ import annotations

from collections.abc import Sequence

from diablo_ds.config.setting import LARGEST
from diablo_ds.errors import UserError


def parse_limits(
    texts: Sequence[str], names: Sequence[str], setting: str, default: int = 0
) -> dict[str, int]:
    """Return the limit of each task; 0 for all its questions.

    Args:
        texts: each ROWS for all tasks without a limit of their own, or TASK=ROWS for one; several
            with commas.
        names: of the tasks that are asked.
        setting: by which the limits are given, for the errors.
        default: of tasks for which no limit is given.

    Raises:
        UserError: if a text has another form, or a limit is given twice or concerns no task.
    """
    limits: dict[str, int] = {}
    for text in (part.strip() for given in texts for part in given.split(",")):
        name, _, rows = text.rpartition("=")
        if not (rows.isascii() and rows.isdecimal()) or int(rows) > LARGEST or text[:1] == "=":
            raise UserError(
                f"{setting} must be ROWS for all tasks or TASK=ROWS for one, an integer from 0 to "
                f"{LARGEST}, 0 for all; got {setting}={text!r:.200}"
            )
        if name and name not in names:
            raise UserError(
                f"{setting} must be of one of the tasks {', '.join(names) or '(none)'}; got "
                f"{setting}={text!r:.200}"
            )
        if name in limits:
            raise UserError(
                f"{setting} must give each limit once; got two of {name or 'all tasks'}, the "
                f"second {text!r:.200}"
            )
        limits[name] = int(rows)
    if "" in limits and names and all(name in limits for name in names):
        raise UserError(
            f"{setting} for all tasks has no effect where each has its own; got "
            f"{setting}={limits['']}; leave it out"
        )
    shared = limits.get("", default)
    return {name: limits.get(name, shared) for name in names}
