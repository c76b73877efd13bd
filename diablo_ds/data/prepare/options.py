"""The settings of a preparation, checked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diablo_ds.config.choices import (
    AUTO,
    CORPORA,
    MAX_BAD_ROWS,
    ControlTokens,
    Overlong,
    Template,
    TextForm,
    check_control_tokens,
)
from diablo_ds.config.mix import parse_mix
from diablo_ds.config.setting import REQUIRED, check_settings, setting
from diablo_ds.errors import UserError

_NOT_RECORDED = ("output", "num_proc", "max_bad_rows")
_RECORDED_BY_CONTENT = ("tokenizer", "source", "val_source", "exclude")


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Settings of one preparation. Field by field the same as the command's options.

    Raises:
        UserError: if a value is out of its range.
    """

    family: str
    """One of `CORPORA`."""
    source: tuple[str, ...] = setting(
        REQUIRED,
        "File, folder, glob or hf://owner/name, or NAME=one of them; repeatable. JSON, JSONL, CSV, "
        "TSV, parquet, Arrow, text, compressed, or saved by datasets.",
        "sources",
    )
    mix: tuple[str, ...] = setting(
        (),
        "NAME=ROWS or NAME=SHARE to take of a source, at random; all of the others; repeatable.",
        "sources",
    )
    limit: int = setting(
        0,
        "Rows to read of each source name; 0 for all.",
        "sources",
        minimum=0,
        maximum=2**63 - 1,
    )
    exclude: tuple[str, ...] = setting(
        (),
        "Test file or folder: training rows with its questions are skipped; repeatable.",
        "sources",
    )
    val_source: tuple[str, ...] = setting((), "Source of the held-out part; repeatable.", "sources")
    val_share: float = setting(
        0.0, "Share of rows to hold out, at random.", "sources", minimum=0, maximum=0.5
    )
    max_bad_rows: float = setting(
        MAX_BAD_ROWS,
        "Share of rows that may fail to fit the corpus; above it the run fails.",
        "sources",
        minimum=0,
        maximum=1,
    )
    tokenizer: str = setting(
        "default",
        "Folder, SentencePiece .model file, or hf://owner/name; default is SmolLM2's.",
        "model",
    )
    template: Template = setting(AUTO, "Prompt template; auto takes the corpus's own.", "data")
    column: tuple[str, ...] = setting(
        (),
        "FIELD=COLUMN: the column that holds a field, as in prompt=Question; repeatable.",
        "data",
    )
    text: TextForm = setting(
        AUTO,
        "Texts without a prompt: joined, each with its end token, and cut to --max-length (chunk, "
        "which auto takes), or each an example (row).",
        "data",
    )
    control_tokens: ControlTokens = setting(
        AUTO,
        "Control tokens in plain rows: read them, keep them as text, or (auto) read them in rows "
        "that begin or end with one.",
        "data",
    )
    max_length: int = setting(512, "Longest example, in tokens.", "data", minimum=2)
    overlong: Overlong = setting(
        "drop", "What to do with examples longer than --max-length.", "data"
    )
    output: Path = setting(REQUIRED, "New folder.", "run")
    seed: int = setting(0, "Seed of random choices.", "run", minimum=0, maximum=2**63 - 1)
    num_proc: int = setting(1, "Processes.", "run", minimum=1, shown_default="cores")
    licence: str = setting("", "Licence of the data, for the record.", "run")

    def __post_init__(self) -> None:
        if self.family not in CORPORA:
            raise UserError(
                f"family must be one of {', '.join(CORPORA)}; got family={self.family!r}"
            )
        check_settings(self)
        if not self.source:
            raise UserError(
                "source must be at least one file, folder, glob or hf://owner/name; got none"
            )
        check_control_tokens(self.control_tokens, self.template)
        if self.val_share and self.val_source:
            raise UserError(
                "give val_share or val_source, not both; got "
                f"val_share={self.val_share}, val_source={self.val_source[0]!r}"
            )
        self.amounts()

    def amounts(self) -> dict[str, int | float]:
        """Return how much to take of each named source: rows above 1 or an integer, or a share.

        Raises:
            UserError: if one is malformed.
        """
        return parse_mix(self.mix)

    def recorded(self) -> dict[str, Any]:
        """Return the options that decide what comes out, for the manifest."""
        skipped = (*_NOT_RECORDED, *_RECORDED_BY_CONTENT)
        values = {k: v for k, v in dataclasses.asdict(self).items() if k not in skipped}
        return {**values, "mix": self.amounts(), "column": list(self.column)}
