"""Rows of a corpus, encoded by the tiny tokenizer and read back as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from diablo_ds.data.corpora.encoding import Encoded, Rejected, RowEncoder
from diablo_ds.data.corpora.raw_rows import RawRow
from diablo_ds.data.labels import IGNORE_LABEL
from tests.tiny import tiny_tokenizer


def encode(
    family: str, *rows: Mapping[str, Any], template: str = "auto"
) -> Sequence[Encoded | Rejected]:
    """Encode rows of a corpus by the tiny tokenizer."""
    encoder = RowEncoder(family, template, tiny_tokenizer())
    return encoder.encode([RawRow(i, json.dumps(row).encode()) for i, row in enumerate(rows, 1)])


def texts(result: Encoded | Rejected) -> tuple[str, str]:
    """Return the text without loss and the text with loss of a row's first example."""
    assert isinstance(result, Encoded), result
    decode = tiny_tokenizer().encoder.decode
    num_masked = list(result.examples[0].labels).count(IGNORE_LABEL)
    ids = result.examples[0].input_ids
    return decode(ids[:num_masked]), decode(ids[num_masked:])
