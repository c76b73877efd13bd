"""The columns of the table of runs: what each is called, what it holds, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import settings_of
from diablo_ds.config.suggestion import did_you_mean
from diablo_ds.errors import UserError
from diablo_ds.files.shown_text import shown
from diablo_ds.files.strict_json import finite
from diablo_ds.reporting.record import RunRecord

Value = str | float | int | None


@dataclass(frozen=True)
class Column:
    """One column."""

    name: str
    """In options and JSON, with its unit."""
    title: str
    value: Callable[[RunRecord], Value]
    form: str = ""
    """How a number is shown; empty for text."""
    scale: float = 1.0
    """What a number is multiplied by where it is shown."""

    def text(self, run: RunRecord) -> str:
        """Return a run's value for a table; empty for none."""
        value = self.value(run)
        if value is None:
            return ""
        if self.form and not isinstance(value, str):
            return format(value if self.scale == 1 else value * self.scale, self.form)
        return one_line(str(value))


def one_line(text: str) -> str:
    """Return a text with line ends and other control characters written out."""
    return shown(text).replace("\n", "\\n").replace("\t", "\\t")


def short_name(source: str) -> str:
    """Return the last part of a path or of a name on the hub."""
    return PurePosixPath(source.partition("=")[2] or source).name or source


def _model(run: RunRecord) -> Value:
    if run.run_config is None:
        return None
    model = run.last_start.get("model")
    known = model.get("id") if isinstance(model, dict) else None
    is_default = run.run_config.model == "default"
    return short_name(str(known) if is_default and known else run.run_config.model)


def _data(run: RunRecord) -> Value:
    if run.run_config is None:
        return None
    names = map(short_name, run.run_config.data)
    return ", ".join(names) or run.run_config.corpus


def _num_blocks(run: RunRecord) -> Value:
    if run.run_config is None:
        return None
    text = str(run.run_config.num_blocks)
    return int(text) if text.isdecimal() else text


def _rate(run: RunRecord) -> Value:
    return None if run.run_config is None else run.run_config.learning_rate


COLUMNS = (
    Column("name", "run", lambda run: run.name),
    Column("model", "model", _model),
    Column("data", "data", _data),
    Column("num_blocks", "N", _num_blocks, "d"),
    Column("learning_rate", "rate", _rate, ".2g"),
    Column("steps", "steps", lambda run: run.numbers.steps, "d"),
    Column("heldout_first", "first", lambda run: run.numbers.first_heldout, ".4f"),
    Column("heldout_best", "best", lambda run: run.numbers.best_heldout, ".4f"),
    Column("tokens_per_s", "tokens/s", lambda run: run.numbers.tokens_per_s, ",.0f"),
    Column("memory_bytes", "GB", lambda run: run.numbers.peak_memory_bytes, ".2f", 1e-9),
    Column("state", "state", lambda run: run.standing.state),
)
BY_NAME = {column.name: column for column in COLUMNS}
_SETTINGS = {setting.name for setting in settings_of(RunConfig)}
MORE: dict[str, Callable[[RunRecord], Value]] = {
    "date": lambda run: run.starts[0].get("date") if run.starts else None,
    "heldout_last": lambda run: run.numbers.last_heldout,
    "best_step": lambda run: run.numbers.best_step,
    "loss": lambda run: run.numbers.last_loss,
    "step_s": lambda run: run.numbers.step_s,
    "mfu": lambda run: run.numbers.mfu,
    "num_steps": lambda run: run.num_steps,
    "world_size": lambda run: run.last_start.get("world_size"),
}
"""Values without a column."""


def known_name(text: str) -> str:
    """Return the name of a column or a setting, which may be written with dashes.

    Raises:
        UserError: if nothing has that name.
    """
    name = text.replace("-", "_")
    known = [*BY_NAME, *MORE, *_SETTINGS]
    if name in known:
        return name
    hint = did_you_mean(name, known) or f"; columns are {', '.join([*BY_NAME, *MORE])}"
    raise UserError(
        f"runs must be sorted and filtered by a column or a setting; got {text!r:.60}{hint}"
    )


def value_of(run: RunRecord, name: str) -> Any:
    """Return a run's value by the name of a column or a setting; None where there is none."""
    if name in BY_NAME:
        value: Any = BY_NAME[name].value(run)
    elif name in MORE:
        value = MORE[name](run)
    else:
        value = None if run.run_config is None else getattr(run.run_config, name)
        value = ", ".join(map(str, value)) if isinstance(value, tuple) else value
    return finite(value) if isinstance(value, float) else value
