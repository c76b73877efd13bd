"""A model by its widths, as options give them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diablo_ds.config.setting import check_settings, setting


def _width(help: str) -> Any:
    return setting(None, help, "model", minimum=1, shown_default="the model's")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder's widths; None leaves the model's own.

    Raises:
        UserError: if a value is illegal.
    """

    hidden_size: int | None = _width("Width of the residual stream.")
    intermediate_size: int | None = _width("Width inside the feed-forward part.")
    num_hidden_layers: int | None = _width("Decoder layers.")
    num_attention_heads: int | None = _width("Query heads of attention.")
    num_key_value_heads: int | None = _width("Key and value heads of attention.")
    vocab_size: int | None = _width("Tokens of the vocabulary.")
    tie_word_embeddings: bool | None = setting(
        None,
        "Whether the head shares the embedding's weight.",
        "model",
        shown_default="the model's",
    )

    def __post_init__(self) -> None:
        check_settings(self)
