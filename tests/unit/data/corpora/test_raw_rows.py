from __future__ import annotations

import pytest

from diablo_ds.data.corpora.raw_rows import RawRow, Unreadable, parse
from diablo_ds.data.corpora.reading import read_rows

_LONG, _HALF = b'{"n": ' + b"7" * 5000 + b"}", b'{"a": "\\ud83d"}'


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (_LONG, "at most 4,300 digits: 5,000"),
        (_HALF, "surrogate"),
        (b'{"a": 1, "a": 2}', "there once: 'a'"),
        (b"[" * 150 + b"]" * 150, "may be nested"),
        (b'{"a": "' + b"x" * 1_000_001 + b'"}', "at most 1,000,000 characters: 1,000,"),
    ],
)
def test_a_row_that_python_cannot_hold_is_one_bad_row(tmp_path, value, reason):
    good = b'{"a": "b"}'
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([good, value, good]))
    (tmp_path / "a.json").write_bytes(b"[" + b",\n".join([good, value, good]) + b"]")
    for name in ("a.jsonl", "a.json"):
        rows = [(row.line, parse(row.value)) for row in read_rows(tmp_path / name)]
        assert [line for line, _ in rows] == [1, 2, 3]
        assert rows[0][1] == rows[2][1] == {"a": "b"}
        # The length of a row that was parsed is judged when it is rendered.
        if name == "a.jsonl" or "characters" not in reason:
            assert reason in rows[1][1].reason


def test_the_size_of_a_row_is_that_of_its_text():
    assert RawRow(1, b'{"a": "bc"}').size() == 11
    assert RawRow(1, {"a": "bc", "d": ["e"], "f": "g"}).size() == 3
    assert RawRow(1, Unreadable("x")).size() == 0
