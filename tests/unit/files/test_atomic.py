from __future__ import annotations

import pytest

from diablo_ds.files.atomic import new_folder, write_text


@pytest.mark.parametrize("keep_first", [True, False])
def test_of_two_that_make_a_folder_the_first_or_the_last_stays(keep_first, tmp_path):
    with new_folder(tmp_path / "made", keep_first=keep_first) as first:
        (first / "by").write_text("first")
        with new_folder(tmp_path / "made", keep_first=keep_first) as second:
            (second / "by").write_text("second")
    expected = "second" if keep_first else "first"  # the second was done before the first
    assert (tmp_path / "made" / "by").read_text() == expected
    assert list(tmp_path.iterdir()) == [tmp_path / "made"]


def test_text_that_utf_8_cannot_hold_is_written_out(tmp_path):
    write_text(tmp_path / "page", "a\ud800b")
    assert (tmp_path / "page").read_text() == "a\\ud800b"
