from __future__ import annotations

import pytest

from diablo_ds.data.corpora.fields import RowError, text


def test_a_text_is_returned_as_it_is():
    assert text({"a": " b "}, "a") == " b "
    assert text({"a": ""}, "a", may_be_empty=True) == ""


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "field 'a' must be text: no such field"),
        ({"a": None}, "field 'a' must be text: None"),
        ({"a": 3}, "field 'a' must be text: 3"),
        ({"a": " \n"}, "field 'a' must not be empty"),
    ],
)
def test_other_fields_are_refused_with_the_reason(row, reason):
    with pytest.raises(RowError) as error:
        text(row, "a")
    assert str(error.value) == reason
