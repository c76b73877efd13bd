"""The run config's settings of the data: which they are, how they are read, and in what order."""

# ruff: noqa: RUF009 - each setting is a dataclasses.field

from __future__ import annotations

import functools
from dataclasses import dataclass

from diablo_ds.config.choices import (
    MAX_BAD_ROWS,
    ControlTokens,
    Corpus,
    DataOrder,
    Overlong,
    Template,
    TextForm,
)
from diablo_ds.config.mix import parse_mix
from diablo_ds.config.setting import setting

_data = functools.partial(setting, group="data")
DEFAULT_DATA = ("default",)
"""The data that come with the program."""
RAW_SETTINGS = ("corpus", "column", "text", "template", "control_tokens")
"""Settings that say how raw files are read."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The settings of a run's data; a part of `diablo_ds.config.run.RunConfig`."""

    data: tuple[str, ...] = _data(
        DEFAULT_DATA,
        "Training data: a prepared dataset, a raw file, folder, glob or hf://owner/name (JSON, "
        "JSONL, CSV, TSV, parquet, Arrow, text), or NAME=one of them; repeatable.",
        shown_default="a slice of GSM8K",
    )
    mix: tuple[str, ...] = _data(
        (),
        "NAME=ROWS or NAME=SHARE to take of a source, at random; all of the others; repeatable.",
    )
    max_bad_rows: float = _data(
        MAX_BAD_ROWS,
        "Share of rows of raw files that may fail to fit; above it the run is refused.",
        minimum=0,
        maximum=1,
        on_resume="free",
    )
    corpus: Corpus = _data(
        "auto", "Family of raw files; auto knows rows by their fields, and asks where it must."
    )
    column: tuple[str, ...] = _data(
        (), "FIELD=COLUMN: the column that holds a field, as in prompt=Question; repeatable."
    )
    text: TextForm = _data(
        "auto",
        "Texts in raw files: joined and cut to max_length (chunk), or each an example (row); auto "
        "is row in a stream, else chunk.",
    )
    template: Template = _data("auto", "Prompt template of raw files; auto takes the corpus's own.")
    control_tokens: ControlTokens = _data(
        "auto",
        "Control tokens in raw files: read, text, or auto for read where a row begins or ends "
        "with one.",
    )
    stream: bool = _data(
        False, "Tokenise raw files while training, in bounded memory; needs max_steps."
    )
    heldout_data: tuple[str, ...] = _data(
        (),
        "Held-out data in the same forms, instead of the sources' own held-out parts and shares; "
        "repeatable.",
    )
    heldout_share: float = _data(
        0.05,
        "Share that is held out of each source without a held-out part of its own.",
        minimum=0,
        maximum=0.5,
    )
    allow_changed_data: bool = _data(
        False,
        "Resume although the data changed, with a new pass over the data as they are now.",
        on_resume="free",
    )
    max_length: int = _data(512, "Longest example, in tokens.", minimum=2)
    overlong: Overlong = _data("drop", "What to do with longer examples; error stops the run.")
    packing: bool = _data(
        False, "Put several examples into one sequence of max_length; each attends to itself alone."
    )
    group_by_length: bool = _data(
        False, "Make each global batch of examples of similar length, for less padding."
    )
    data_order: DataOrder = _data(
        "auto",
        "How the seed orders a pass: hashed (auto), or seed-plus-epoch as earlier versions did.",
        is_open=True,
    )

    @property
    def has_default_data(self) -> bool:
        """Whether the data are those that come with the program."""
        return self.data == DEFAULT_DATA

    def amounts(self) -> dict[str, int | float]:
        """Return how much to take of each source that `mix` names; see `parse_mix`."""
        return parse_mix(self.mix)
