from __future__ import annotations

import gzip
import json
import tracemalloc

from diablo_ds.data.corpora.raw_rows import Unreadable, parse
from diablo_ds.data.corpora.reading import read_rows


def test_half_a_surrogate_pair_in_columns_is_one_bad_row(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a": ["x", "\\ud83d", "z"], "b": ["u", "v", "w"]}')
    values = [row.value for row in read_rows(tmp_path / "a.json")]
    assert values[0] == {"a": "x", "b": "u"}
    assert isinstance(values[1], Unreadable)
    assert values[2] == {"a": "z", "b": "w"}


def test_a_line_without_end_is_not_read_at_once(tmp_path):
    """256 MB of one character, in 250 kB, between two good rows."""
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"a": 1}\n')
        for _ in range(64):
            file.write(b"x" * (1 << 22))
        file.write(b'\n{"a": 2}\n')
    tracemalloc.start()
    try:
        rows = list(read_rows(path))
        assert tracemalloc.get_traced_memory()[1] < 12e6
    finally:
        tracemalloc.stop()
    assert [row.line for row in rows] == [1, 2, 3]
    assert "1,000,000 characters: 268,435,457" in rows[1].value.reason


def test_lists_on_a_single_line_are_columns_and_messages_are_a_row(tmp_path):
    columns = {"question": ["a", "b"], "answer": ["c", "d"]}
    path = tmp_path / "d.json"
    path.write_text(json.dumps(columns))
    assert [row.value for row in read_rows(path)] == [
        {"question": "a", "answer": "c"},
        {"question": "b", "answer": "d"},
    ]
    row = {"messages": [{"role": "user", "content": "a"}]}
    path.write_text(json.dumps(row))
    assert [parse(row.value) for row in read_rows(path)] == [row]
