from __future__ import annotations

from diablo_ds.data.labels import IGNORE_LABEL, Example
from diablo_ds.data.text.marking import marked
from tests.tiny import tiny_tokenizer


def test_loss_is_in_brackets_with_its_control_tokens():
    tokenizer = tiny_tokenizer()
    ask, answer = tokenizer.encoder.encode(["a ", "b c"], continues=False, parse_special=False)
    masked = [IGNORE_LABEL] * len(ask)
    example = Example([*ask, *answer, 256, *ask], [*masked, *answer, 256, *masked])
    assert marked(example, tokenizer.encoder) == "a [[b c<|end|>]]a "
