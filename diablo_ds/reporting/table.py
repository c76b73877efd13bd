"""The table of runs: filtered, sorted, as text or as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from diablo_ds.errors import UserError
from diablo_ds.files.text_table import text_table
from diablo_ds.reporting.columns import COLUMNS, MORE, known_name, one_line, value_of
from diablo_ds.reporting.record import RunRecord

_ALWAYS = ("name", "state")
_SETTINGS = ("model", "data", "num_blocks", "learning_rate")
"""Columns that stand below the table where they are the same in all runs."""
_CONDITION = re.compile(r"\s*([\w-]+?)\s*(<=|>=|!=|=|<|>|~)\s*(.*?)\s*")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "~": lambda a, b: str(b) in str(a),
}


def filtered(runs: Iterable[RunRecord], conditions: Sequence[str]) -> Iterator[RunRecord]:
    """Return the runs that meet all conditions, which are checked before a run is asked for.

    Args:
        runs: the runs.
        conditions: such as "num_blocks=32", "heldout_best<1.2", "model~llama", "state!=done". Where
            both sides are numbers they are compared as such, else as text. What a run does not have
            meets no condition but "!=".

    Raises:
        UserError: if one cannot be understood.
    """
    asked = []
    for condition in conditions:
        match = _CONDITION.fullmatch(condition)
        if match is None:
            raise UserError(
                "a condition must be NAME, one of = != < <= > >= ~, and a value; got "
                f"{condition!r:.80}; such as --where 'heldout_best<1.2'"
            )
        asked.append((known_name(match[1]), match[2], match[3]))
    return (
        run
        for run in runs
        if all(_meets(value_of(run, name), sign, wanted) for name, sign, wanted in asked)
    )


def sorted_runs(runs: Iterable[RunRecord], name: str, *, descending: bool) -> list[RunRecord]:
    """Return the runs sorted by a column or a setting; those without a value last.

    Raises:
        UserError: if nothing has that name; before the first run is asked for.
    """
    name = known_name(name)
    pairs = [(value_of(run, name), run) for run in runs]
    known = [pair for pair in pairs if pair[0] is not None]
    are_numbers = all(isinstance(value, int | float) for value, _ in known)
    known.sort(key=lambda p: p[0] if are_numbers else str(p[0]), reverse=descending)
    return [run for _, run in known] + [run for value, run in pairs if value is None]


def runs_table(runs: Sequence[RunRecord]) -> str:
    """Return the table, and below it what is the same in all runs, and why some were not read."""
    texts = {column: {column.text(run) for run in runs} for column in COLUMNS}
    same = [c for c in COLUMNS if c.name in _SETTINGS and len(runs) > 1 and len(texts[c]) == 1]
    shown = [c for c in COLUMNS if c not in same and (c.name in _ALWAYS or texts[c] != {""})]
    rows = [[column.title for column in shown]]
    for run in runs:
        cells = {column.name: column.text(run) for column in shown}
        if "steps" in cells and run.num_steps:
            cells["steps"] += f"/{run.num_steps}"
        rows.append(list(cells.values()))
    left = {i for i, column in enumerate(shown) if not column.form}
    lines = [text_table(rows, left=left)]
    if same:
        settings = ", ".join(f"{column.title} {column.text(runs[0])}" for column in same)
        lines.append(f"The same in all: {settings}")
    problems = [one_line(f"{run.name}: {run.problem}") for run in runs if run.problem]
    return "\n".join([*lines, *problems])


def runs_json(runs: Sequence[RunRecord]) -> str:
    """Return the runs as JSON: a list of objects, with every column and every setting."""
    return json.dumps([_as_json(run) for run in runs], indent=2)


def _as_json(run: RunRecord) -> dict[str, Any]:
    names = [*(column.name for column in COLUMNS), *MORE]
    settings = vars(run.run_config) if run.run_config is not None else None
    return {
        "folder": str(run.folder),
        **{name: value_of(run, name) for name in names},
        "why": run.standing.why,
        "problem": run.problem,
        "settings": settings,
    }


def _meets(value: Any, sign: str, wanted: str) -> bool:
    if value is None:
        return sign == "!="
    compare = _COMPARE[sign]
    if sign != "~" and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return compare(float(value), float(wanted))
        except ValueError:
            return sign == "!="
    text = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
    return compare(str(text), wanted)
