from __future__ import annotations

import numpy as np
import pytest

from diablo_ds.data.labels import IGNORE_LABEL, Example
from diablo_ds.data.length_limit import LengthLimit

NO = IGNORE_LABEL
# Start token 1, prompt 10 to 14, completion 20 to 22, end token 2.
EXAMPLE = Example([1, 10, 11, 12, 13, 14, 20, 21, 22, 2], [NO] * 6 + [20, 21, 22, 2])


def _fit(max_length, overlong, example=EXAMPLE):
    return LengthLimit(max_length, overlong, (1,)).fit(example)


@pytest.mark.parametrize("overlong", ["drop", "cut-prompt", "cut-completion", "error"])
def test_what_fits_is_left_alone(overlong):
    assert _fit(10, overlong) is EXAMPLE
    assert LengthLimit(overlong=overlong).fit(EXAMPLE) is EXAMPLE


@pytest.mark.parametrize("overlong", ["drop", "error"])
def test_what_is_too_long_is_dropped(overlong):
    assert _fit(9, overlong) is None


def test_cutting_the_prompt_keeps_start_token_prompt_end_and_completion():
    assert _fit(7, "cut-prompt") == ([1, 13, 14, 20, 21, 22, 2], [NO] * 3 + [20, 21, 22, 2])
    assert _fit(6, "cut-prompt").input_ids == [1, 14, 20, 21, 22, 2]
    # With nothing of the prompt left, the completion would answer no question.
    assert _fit(5, "cut-prompt") is None
    assert LengthLimit(4, "cut-prompt").fit(EXAMPLE) is None


def test_an_example_without_start_token_keeps_none():
    """A chat template need not write the tokenizer's start token."""
    without = Example(EXAMPLE.input_ids[1:], EXAMPLE.labels[1:])
    assert _fit(6, "cut-prompt", without).input_ids == [13, 14, 20, 21, 22, 2]


def test_arrays_are_cut_as_lists_are():
    arrays = Example(*(np.array(values, np.int32) for values in EXAMPLE))
    for overlong in ("cut-prompt", "cut-completion"):
        expected, found = _fit(8, overlong), _fit(8, overlong, arrays)
        assert [list(values) for values in found] == [list(values) for values in expected]


def test_cutting_the_completion_cuts_the_end_token_too():
    assert _fit(8, "cut-completion") == ([1, 10, 11, 12, 13, 14, 20, 21], [NO] * 6 + [20, 21])
    assert _fit(6, "cut-completion") is None  # no target would be left


def test_a_text_without_prompt_cannot_lose_its_prompt():
    text = Example([5, 6, 7], [5, 6, 7])
    assert _fit(2, "cut-prompt", text) is None
    assert _fit(2, "cut-completion", text) == ([5, 6], [5, 6])
