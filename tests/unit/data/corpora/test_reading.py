from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diablo_ds.data.corpora.raw_rows import Unreadable, parse
from diablo_ds.data.corpora.reading import read_rows
from diablo_ds.data.corpora.sources import find_sources
from diablo_ds.errors import UserError

ROWS = [{"a": "1\n\u00e9", "b": "x"}, {"a": "2", "b": "]},{"}, {"a": "3", "b": ""}]


def _json_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _compress(data, ending):
    if ending == ".gz":
        return gzip.compress(data)
    return pa.Codec("zstd").compress(data, asbytes=True) if ending == ".zst" else data


def _texts():
    columns = {key: [row[key] for row in ROWS] for key in ROWS[0]}
    return {
        "lines.jsonl": _json_lines(ROWS),
        "lines.json": _json_lines(ROWS),
        "blank.jsonl": "\n" + _json_lines(ROWS).replace("\n", "\n\n"),
        "array.json": json.dumps(ROWS),
        "indented.json": json.dumps(ROWS, indent=4, ensure_ascii=False),
        "lists.json": json.dumps({**columns, "note": "other"}, indent=1),
        "bom.jsonl": "\ufeff" + _json_lines(ROWS),
        "bom.json": "\ufeff" + json.dumps(ROWS),
        "table.csv": 'a,b\n"1\n\u00e9",x\n2,"]},{"\n3,\n',
    }


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", _texts())
def test_every_form_gives_the_same_rows(tmp_path, name, ending):
    path = tmp_path / (name + ending)
    path.write_bytes(_compress(_texts()[name].encode(), ending))
    num_bytes = []
    rows = list(read_rows(path, num_bytes.append))
    assert [parse(row.value) for row in rows] == ROWS
    assert sum(num_bytes) == path.stat().st_size


def test_parquet(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "t.parquet")
    rows = list(read_rows(tmp_path / "t.parquet"))
    assert [(row.line, row.value) for row in rows] == list(enumerate(ROWS, start=1))


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("a.jsonl", '{"a": 1}\n\n{"a": 2}\n', [1, 3]),
        ("a.json", '[\n  {"a": 1},\n  {\n    "a": 2\n  }, {"a": 3}\n]', [2, 3, 5]),
        ("a.csv", 'a,b\n1,"x\ny"\n2,z\n', [2, 4]),
    ],
)
def test_rows_know_their_line(tmp_path, name, text, lines):
    (tmp_path / name).write_text(text)
    assert [row.line for row in read_rows(tmp_path / name)] == lines


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b'[\n{"a": 1},\n{"a": }\n]', "line 3: Expecting value"),
        ("a.json", b'[\n{"a": 1},\n{"a": "cut', "line 3: Unterminated string"),
        ("a.json", b'[{"a": 1}\n', r"line 2: Expecting value"),
        ("a.json", b"[{'a': 1}]" + b" " * 100, "line 1: Expecting property name"),
        ("a.json", b"hello", "line 1: an array or an object must come first"),
        ("a.json", b'{\n"a": [1,\n}', "line 3: "),
        ("a.json", '[{"a": "\u00e9"}]'.encode("latin-1"), "must be UTF-8"),
        ("a.json", b"[" * 100_000, "line 1: at most 100 lists and objects may be nested"),
        ("a.json", b'{"a": ' * 100_000, "line 1: at most 100 lists and objects may be nested"),
        ("a.json", b'{"a": ["x"], "a": ["y"]}', "line 1: each key of an object must be there once"),
        ("a.csv", b"a,a\n1,2\n", "different names; got 'a' twice"),
        ("a.csv", b'a\n"x' + (b"y" * 1000 + b"\n") * 17_000, "line 2: field larger than"),
        ("a.csv", b"a\n" + b"y" * 17_000_000, "at most 16,000,000 characters.*line 2"),
        ("a.jsonl.zst", _compress(b'{"a": 1}\n' * 1000, ".zst")[:-9], "must be whole"),
        ("a.csv.zst", b"no zst", "must be whole"),
        (
            "a.json.gz",
            gzip.compress(b"[" + b" " * 9999, mtime=0)[:20] + b"\0" * 50,
            "must be whole",
        ),
        *(
            (f"a{form}", text.encode(encoding), "must be UTF-8; got .*, which is UTF-16")
            for form, text in ((".jsonl", '{"a": 1}'), (".json", "[{}]"), (".csv", "a,b\n"))
            for encoding in ("utf-16", "utf-16-le", "utf-16-be")
        ),
        ("a.jsonl.gz", gzip.compress('{"a": 1}'.encode("utf-16"), mtime=0), "which is UTF-16"),
        ("a.csv", "a\n\u00e9".encode("latin-1"), "must be UTF-8"),
        ("a.csv", b'a,b\n1,2\n3,"x', "valid CSV; got .*line 3"),
        ("a.parquet", b"PAR1 no", "valid parquet"),
        ("a.jsonl.gz", b"no gzip", "must be whole"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-20], "must be whole"),
    ],
)
def test_damaged_files_are_named_with_the_line(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        list(read_rows(tmp_path / name))
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    ("name", "data", "reasons"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a"\n[1]\n\xff\n', ["", "valid JSON", "object: list", "UTF-8"]),
        ("a.json", b'[{"a": 1}, 2, "x", null]', ["", "object: int", "object: str", "NoneType"]),
        ("a.csv", b"a,b\n1,2\n3\n4,5,6\n", ["", "many fields", "many fields"]),
    ],
)
def test_one_bad_row_does_not_hide_the_others(tmp_path, name, data, reasons):
    (tmp_path / name).write_bytes(data)
    values = [parse(row.value) for row in read_rows(tmp_path / name)]
    assert len(values) == len(reasons)
    for value, reason in zip(values, reasons, strict=True):
        assert isinstance(value, Unreadable) == bool(reason)
        assert not reason or reason in value.reason


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


def test_half_a_surrogate_pair_in_columns_is_one_bad_row(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a": ["x", "\\ud83d", "z"], "b": ["u", "v", "w"]}')
    values = [row.value for row in read_rows(tmp_path / "a.json")]
    assert values[0] == {"a": "x", "b": "u"}
    assert isinstance(values[1], Unreadable)
    assert values[2] == {"a": "z", "b": "w"}


def test_a_line_without_end_is_not_read_whole(tmp_path):
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


def test_a_csv_cell_may_be_as_long_as_a_row(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n" + "x" * 900_000 + ",y\n")
    (row,) = read_rows(tmp_path / "a.csv")
    assert len(row.value["a"]) == 900_000


def test_parquet_values_that_python_cannot_hold_are_bad_rows(tmp_path):
    far = pa.array([0, 10_000_000, 1], pa.int32()).view(pa.date32())
    table = pa.table({"text": ["aa", "bb", "cc"], "date": far, "number": [1, 2, 3]})
    pq.write_table(table, tmp_path / "a.parquet")
    rows = list(read_rows(tmp_path / "a.parquet"))
    assert [row.line for row in rows] == [1, 2, 3]
    assert [row.value["text"] for row in (rows[0], rows[2])] == ["aa", "cc"]
    assert "column 'date'" in rows[1].value.reason


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz"])
def test_files_that_cannot_be_opened_are_named(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"source file must be readable; got .*: Is a directory"):
        list(read_rows(tmp_path / name))


def test_names_that_are_not_utf8_are_refused(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"\xe9.jsonl")).touch()
    with pytest.raises(UserError, match="without control characters, in UTF-8"):
        find_sources([str(tmp_path)])


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.zst"])
def test_a_large_file_is_read_in_bounded_memory(tmp_path, name):
    rows = [{"text": f"{i} " + "word " * 400} for i in range(20_000)]  # 40 MB
    if "jsonl" in name:
        data = _json_lines(rows).encode()
    elif "csv" in name:
        data = ("text\n" + "\n".join(row["text"] for row in rows)).encode()
    else:
        data = json.dumps(rows).encode()
    path = tmp_path / name
    path.write_bytes(_compress(data, path.suffix))
    del rows, data
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows(path)) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 12e6
    finally:
        tracemalloc.stop()


def _touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _found(*texts):
    sources, passed_over = find_sources(texts)
    return [(s.name, s.path.name) for s in sources], [path.name for path in passed_over]


def test_a_folder_gives_its_training_files_named_after_their_task(tmp_path):
    _touch(tmp_path, "boolq/train.json", "boolq/test.json", "piqa/train.json.gz", "piqa/dev.json")
    _touch(tmp_path, "notes.txt", "extra/more.csv")
    sources, passed_over = _found(str(tmp_path))
    expected = [("boolq", "train.json"), ("more", "more.csv"), ("piqa", "train.json.gz")]
    assert sources == expected
    assert passed_over == ["test.json", "dev.json"]


def test_a_file_or_glob_that_is_named_is_taken_as_it_is(tmp_path):
    _touch(tmp_path, "boolq/test.json", "piqa/test.json")
    assert _found(str(tmp_path / "boolq/test.json")) == ([("boolq", "test.json")], [])
    assert len(_found(str(tmp_path / "*/test.json"))[0]) == 2
    assert _found(f"mine={tmp_path}/boolq/test.json")[0] == [("mine", "test.json")]


def test_a_data_set_of_the_hub_is_found_in_its_cache(tmp_path, monkeypatch):
    """The layout of the hub's own cache, which a download leaves and offline runs read."""
    repository = tmp_path / "datasets--org--corpus"
    _touch(repository, "snapshots/abc/data/train.parquet", "snapshots/abc/data/test.parquet")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert _found("org/corpus") == ([("data", "train.parquet")], ["test.parquet"])


@pytest.mark.parametrize("text", ["nowhere.json", "./nowhere", "no/such/file.json", "a/*.json"])
def test_sources_that_are_not_there_are_named(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"must be an existing|reachable hub name") as error:
        find_sources([text])
    assert text in str(error.value)


def test_wrong_forms_and_repeats_are_named(tmp_path):
    _touch(tmp_path, "a.txt", "b.json", "c/test.json")
    with pytest.raises(UserError, match=r"must be one of \.jsonl, .*a\.txt"):
        find_sources([str(tmp_path / "a.txt")])
    with pytest.raises(UserError, match=r"named once; got .*b\.json twice"):
        find_sources([str(tmp_path / "b.json"), f"x={tmp_path / 'b.json'}"])
    with pytest.raises(UserError, match="1 files look like test data: name them"):
        find_sources([str(tmp_path / "c")])


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
