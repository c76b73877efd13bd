from __future__ import annotations

import pytest

from diablo_ds.data.corpora.encoding import Rejected, RowEncoder
from diablo_ds.data.corpora.raw_rows import RawRow
from diablo_ds.data.text.templates import alpaca, gsm8k
from tests.tiny import tiny_tokenizer
from tests.unit.data.corpora.encoded import encode, texts

END = "<|end|>"


@pytest.mark.parametrize("template", ["alpaca", "gsm8k", "plain"])
def test_a_template_can_be_chosen(template):
    (result,) = encode("math", {"problem": "1?", "solution": "1"}, template=template)
    prompts = {"alpaca": alpaca("1?"), "gsm8k": gsm8k("1?"), "plain": "1?"}
    assert texts(result) == (prompts[template], "1" + END)


def test_a_row_of_10_megabytes_is_rejected_without_parsing_it():
    rows = [RawRow(7, b"[" * 10_000_000)]
    encoder = RowEncoder("auto", "auto", tiny_tokenizer())
    (result,) = encoder.encode(rows)
    assert result == Rejected(7, "a row must have at most 1,000,000 characters: 10,000,000")


def test_control_tokens_are_read_in_rows_that_were_rendered_before_only():
    rows = [{"prompt": f"a{END}b", "completion": f"c{end}"} for end in ("", END)]
    counts = [
        [list(row.examples[0].input_ids).count(256) for row in encode("auto", *rows, **o)]
        for o in ({}, {"template": "alpaca"})
    ]
    assert counts == [[1, 2], [1, 1]]
