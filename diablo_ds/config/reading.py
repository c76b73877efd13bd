"""What training and preparation both know of how raw files are read."""

from __future__ import annotations

from typing import Protocol


class ReadingSettings(Protocol):
    """Settings that a run config and the options of a preparation have in common."""

    @property
    def template(self) -> str:
        """Prompt template; "auto" for that of the rows' kind."""

    @property
    def control_tokens(self) -> str:
        """What control tokens in plain rows are."""

    @property
    def column(self) -> tuple[str, ...]:
        """Columns of fields, as FIELD=COLUMN."""

    @property
    def text(self) -> str:
        """What becomes of texts without a prompt."""

    @property
    def max_length(self) -> int:
        """Longest example, in tokens."""
