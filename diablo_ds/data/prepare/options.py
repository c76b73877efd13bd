"""What a user asks of a preparation, checked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diablo_ds.config.choices import AUTO, CONTROL_TOKENS, OVERLONG, TEMPLATES, check_control_tokens
from diablo_ds.config.setting import LARGEST
from diablo_ds.data.corpora.families import FAMILIES
from diablo_ds.errors import UserError
from diablo_ds.files.strict_json import is_one_line


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Settings of one preparation. Field by field the same as the command's options.

    Raises:
        UserError: if a value is out of its range.
    """

    family: str
    source: tuple[str, ...]
    tokenizer: str
    output: Path
    max_length: int = 512
    overlong: str = "drop"
    template: str = AUTO
    control_tokens: str = AUTO
    mix: tuple[str, ...] = ()
    limit: int = 0
    val_share: float = 0.0
    val_source: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_bad_rows: float = 0.01
    licence: str = ""
    seed: int = 0
    num_proc: int = 1

    def __post_init__(self) -> None:
        self._check("family", self.family in FAMILIES, f"one of {', '.join(FAMILIES)}")
        self._check("source", bool(self.source), "at least one file, folder, glob or hub name")
        self._check("max_length", 2 <= self.max_length <= LARGEST, f"from 2 to {LARGEST}")
        self._check("overlong", self.overlong in OVERLONG, f"one of {', '.join(OVERLONG)}")
        choices: tuple[str, ...] = (AUTO, *TEMPLATES)
        self._check("template", self.template in choices, f"one of {', '.join(choices)}")
        choices = CONTROL_TOKENS
        self._check("control_tokens", self.control_tokens in choices, f"one of {choices}")
        check_control_tokens(self.control_tokens, self.template)
        self._check("limit", 0 <= self.limit < 2**63, "from 0 to 2**63 - 1")
        self._check("val_share", 0 <= self.val_share <= 0.5, "from 0 to 0.5")
        self._check("max_bad_rows", 0 <= self.max_bad_rows <= 1, "from 0 to 1")
        self._check("seed", 0 <= self.seed < 2**63, "from 0 to 2**63 - 1")
        self._check("num_proc", self.num_proc >= 1, ">= 1")
        texts = (str(self.output), self.licence, self.tokenizer, *self.source, *self.mix)
        for text in (*texts, *self.val_source, *self.exclude):
            if not is_one_line(text):
                raise UserError(
                    f"options must be text without control characters, in UTF-8; got {text!a}"
                )
        if self.val_share and self.val_source:
            raise UserError(
                "give val_share or val_source, not both; got "
                f"val_share={self.val_share}, val_source={self.val_source[0]!r}"
            )
        self.amounts()

    def _check(self, name: str, is_good: bool, rule: str) -> None:
        if not is_good:
            raise UserError(f"{name} must be {rule}; got {name}={getattr(self, name)!r}")

    def amounts(self) -> dict[str, int | float]:
        """Return how much to take of each named source: rows above 1 or a whole number, or a share.

        Raises:
            UserError: if one is malformed.
        """
        amounts: dict[str, int | float] = {}
        for text in self.mix:
            name, _, amount = text.rpartition("=")
            try:
                value = int(amount) if amount.isdecimal() else float(amount)
            except ValueError:
                value = -1
            if not name or name in amounts or value < 0 or (isinstance(value, float) and value > 1):
                raise UserError(
                    "mix must be NAME=ROWS or NAME=SHARE with a share from 0.0 to 1.0, once for "
                    f"each name; got mix={text!r}"
                )
            amounts[name] = value
        return amounts

    def recorded(self) -> dict[str, Any]:
        """Return the options that decide what comes out, for the manifest."""
        left_out = {
            *("output", "num_proc", "max_bad_rows", "tokenizer", "source", "val_source", "exclude")
        }
        values = {k: v for k, v in dataclasses.asdict(self).items() if k not in left_out}
        return {**values, "mix": self.amounts()}
