from __future__ import annotations

import json

import pytest

from diablo_ds.data.corpora.encoding import Encoded, Rejected, RowEncoder
from diablo_ds.data.corpora.raw_rows import RawRow
from diablo_ds.data.labels import IGNORE_LABEL
from diablo_ds.data.text.templates import alpaca, gsm8k
from tests.tiny import tiny_tokenizer

END = "<|end|>"


def _encode(family, *rows, template="auto"):
    encoder = RowEncoder(family, template, tiny_tokenizer())
    return encoder.encode([RawRow(i, json.dumps(row).encode()) for i, row in enumerate(rows, 1)])


def _texts(result):
    assert isinstance(result, Encoded), result
    decode = tiny_tokenizer().encoder.decode
    num_masked = list(result.examples[0].labels).count(IGNORE_LABEL)
    ids = result.examples[0].input_ids
    return decode(ids[:num_masked]), decode(ids[num_masked:])


@pytest.mark.parametrize("template", ["alpaca", "gsm8k", "plain"])
def test_a_template_can_be_chosen(template):
    (result,) = _encode("math", {"problem": "1?", "solution": "1"}, template=template)
    prompts = {"alpaca": alpaca("1?"), "gsm8k": gsm8k("1?"), "plain": "1?"}
    assert _texts(result) == (prompts[template], "1" + END)


def test_a_row_of_10_megabytes_is_rejected_without_parsing_it():
    rows = [RawRow(7, b"[" * 10_000_000)]
    encoder = RowEncoder("jsonl", "auto", tiny_tokenizer())
    (result,) = encoder.encode(rows)
    assert result == Rejected(7, "a row must have at most 1,000,000 characters: 10,000,000")


def test_control_tokens_are_read_in_rows_that_were_rendered_before_only():
    rows = [{"prompt": f"a{END}b", "completion": f"c{end}"} for end in ("", END)]
    counts = [
        [list(row.examples[0].input_ids).count(256) for row in _encode("jsonl", *rows, **o)]
        for o in ({}, {"template": "alpaca"})
    ]
    assert counts == [[1, 2], [1, 1]]
