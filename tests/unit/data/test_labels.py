from __future__ import annotations

import pytest

from diablo_ds.data.labels import IGNORE_LABEL, Example, has_target, shorten

NO = IGNORE_LABEL
# Start token 1, prompt 10 to 14, completion 20 to 22, end token 2.
EXAMPLE = Example([1, 10, 11, 12, 13, 14, 20, 21, 22, 2], [NO] * 6 + [20, 21, 22, 2])


@pytest.mark.parametrize("overlong", ["drop", "cut-prompt", "cut-completion"])
def test_what_fits_is_left_alone(overlong):
    assert shorten(EXAMPLE, 10, overlong, num_start=1) is EXAMPLE


def test_dropping():
    assert shorten(EXAMPLE, 9, "drop") is None


def test_cutting_the_prompt_keeps_start_token_prompt_end_and_completion():
    kept = shorten(EXAMPLE, 7, "cut-prompt", num_start=1)
    assert kept == ([1, 13, 14, 20, 21, 22, 2], [NO] * 3 + [20, 21, 22, 2])
    kept = shorten(EXAMPLE, 6, "cut-prompt", num_start=1)
    assert kept.input_ids == [1, 14, 20, 21, 22, 2]
    # With nothing of the prompt left, the completion would answer no question.
    assert shorten(EXAMPLE, 5, "cut-prompt", num_start=1) is None
    assert shorten(EXAMPLE, 4, "cut-prompt") is None


def test_cutting_the_completion_cuts_the_end_token_too():
    kept = shorten(EXAMPLE, 8, "cut-completion", num_start=1)
    assert kept == ([1, 10, 11, 12, 13, 14, 20, 21], [NO] * 6 + [20, 21])
    assert shorten(EXAMPLE, 6, "cut-completion") is None  # no target would be left


def test_a_text_without_prompt_cannot_lose_its_prompt():
    text = Example([5, 6, 7], [5, 6, 7])
    assert shorten(text, 2, "cut-prompt") is None
    assert shorten(text, 2, "cut-completion") == ([5, 6], [5, 6])


def test_the_first_token_is_no_target():
    assert not has_target([5])
    assert not has_target([5, NO])
    assert has_target([NO, 5])
