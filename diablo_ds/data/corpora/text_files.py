"""Text files: one document each, in pieces that a tokenizer takes at once."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from diablo_ds.data.corpora.opening import not_utf8
from diablo_ds.data.corpora.raw_rows import RawRow

PIECE_CHARACTERS = 1 << 17
_BOUNDARIES = ("\n\n", "\n", " ")
"""Where a document is cut, the best first."""


def read_text(file: IO[bytes], path: Path) -> Iterator[RawRow]:
    """Yield a document in pieces, as rows with the field text; nothing if it is blank.

    Raises:
        UserError: if it is not UTF-8.
    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig")
    line, has_earlier = 1, False
    buffer = ""
    try:
        while True:
            more = text.read(PIECE_CHARACTERS)
            if not more:
                break
            buffer += more
            # Blank pieces are kept back: a document does not end with white space alone.
            while len(buffer) > PIECE_CHARACTERS and buffer[_cut(buffer) :].strip():
                piece = buffer[: _cut(buffer)]
                yield RawRow(line, {"text": piece}, has_earlier, True)
                line, has_earlier = line + piece.count("\n"), True
                buffer = buffer[len(piece) :]
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from None
    if buffer.strip():
        yield RawRow(line, {"text": buffer}, has_earlier, False)


def _cut(buffer: str) -> int:
    """Return the length of the next piece, which ends behind a paragraph, a line or a word.

    The space of a word goes to the piece behind, as tokenizers join it to the word.
    """
    for boundary in _BOUNDARIES:
        found = buffer.rfind(boundary, PIECE_CHARACTERS // 2, PIECE_CHARACTERS)
        if found > 0:
            return found if boundary == " " else found + len(boundary)
    return PIECE_CHARACTERS
