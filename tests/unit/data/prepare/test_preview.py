from __future__ import annotations

import click

from diablo_ds.data.labels import IGNORE_LABEL, Example
from diablo_ds.data.prepare.preview import colored
from tests.tiny import tiny_tokenizer


def test_loss_is_green_and_control_tokens_are_told_from_the_same_characters():
    tokenizer = tiny_tokenizer()
    (characters,) = tokenizer.encoder.encode(["a<|end|>"], continues=False, parse_special=False)
    answer = [*tokenizer.encoder.encode(["b"], continues=True, parse_special=False)[0], 256]
    example = Example([*characters, *answer], [IGNORE_LABEL] * len(characters) + answer)
    assert colored(example, tokenizer.encoder) == (
        "a<|end|>"
        + click.style("b", fg="green", bold=True)
        + click.style(click.style("<|end|>", underline=True, reset=False), fg="green", bold=True)
    )
