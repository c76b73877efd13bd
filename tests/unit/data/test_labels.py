from __future__ import annotations

from diablo_ds.data.labels import IGNORE_LABEL, has_target


def test_the_first_token_is_no_target():
    assert not has_target([5])
    assert not has_target([5, IGNORE_LABEL])
    assert has_target([IGNORE_LABEL, 5])
