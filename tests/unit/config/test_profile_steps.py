from __future__ import annotations

import pytest

from diablo_ds.config.profile_steps import parse_profile_steps
from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError


def test_steps_are_the_first_and_the_last():
    assert list(parse_profile_steps("10-12")) == [10, 11, 12]
    assert list(parse_profile_steps("3", 3)) == [3]
    assert not parse_profile_steps("", 3)
    assert len(parse_profile_steps("1-20")) == 20


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("1-21", "at most 20 steps"),
        ("3-4", "the run has 3"),
        *((text, "as in 10-12") for text in ("0", "0-1", "3-2", "-1", "1-", "a", "1,2", "٣", " 1")),
    ],
)
def test_other_texts_are_refused_before_a_run(text, rule):
    with pytest.raises(UserError, match=rule):
        RunConfig(profile_steps=text, max_steps=3)
