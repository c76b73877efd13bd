"""Examples as text in which loss and no loss are told apart."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from diablo_ds.data.labels import IGNORE_LABEL, Example
from diablo_ds.data.text.encoders import Encoder


class Piece(NamedTuple):
    """Consecutive tokens of one kind, as text."""

    text: str
    has_loss: bool
    is_control: bool


def pieces(example: Example, encoder: Encoder) -> Iterator[Piece]:
    """Yield an example's text, cut where loss or control tokens begin and end."""
    ids, labels = list(map(int, example.input_ids)), list(map(int, example.labels))
    control_ids = encoder.control.ids
    kinds = [
        (label != IGNORE_LABEL, token in control_ids)
        for token, label in zip(ids, labels, strict=True)
    ]
    start = 0
    for end in range(1, len(ids) + 1):
        if end < len(ids) and kinds[end] == kinds[start]:
            continue
        # Decoded from the start, since some tokenizers drop the first space of a text.
        before = encoder.decode(ids[:start]) if start else ""
        yield Piece(encoder.decode(ids[:end])[len(before) :], *kinds[start])
        start = end


def marked(example: Example, encoder: Encoder) -> str:
    """Return an example's text, with the tokens that carry loss in ``[[...]]``."""
    text = ""
    for has_loss, group in groupby(pieces(example, encoder), key=lambda piece: piece.has_loss):
        joined = "".join(piece.text for piece in group)
        text += f"[[{joined}]]" if has_loss else joined
    return text
