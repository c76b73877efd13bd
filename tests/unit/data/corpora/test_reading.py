from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diablo_ds.data.corpora import text_files
from diablo_ds.data.corpora.raw_rows import Unreadable, parse
from diablo_ds.data.corpora.reading import read_rows
from diablo_ds.errors import UserError

ROWS = [{"a": "1\n\u00e9", "b": "x"}, {"a": "2", "b": "]},{"}, {"a": "3", "b": ""}]


def _json_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _compress(data, ending):
    if ending == ".gz":
        return gzip.compress(data)
    if ending in (".bz2", ".xz"):
        return (bz2 if ending == ".bz2" else lzma).compress(data)
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
        "table.tsv": 'a\tb\n"1\n\u00e9"\tx\n2\t"]},{"\n3\t\n',
        "table.csv": 'a,b\n"1\n\u00e9",x\n2,"]},{"\n3,\n',
    }


@pytest.mark.parametrize("ending", ["", ".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize("name", _texts())
def test_every_format_gives_the_same_rows(tmp_path, name, ending):
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


@pytest.mark.parametrize("new", [pa.ipc.new_stream, pa.ipc.new_file])
def test_arrow(tmp_path, new):
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table)
    rows = list(read_rows(tmp_path / "t.arrow"))
    assert [(row.line, row.value) for row in rows] == list(enumerate(ROWS, start=1))


@pytest.mark.parametrize("name", ["a.txt", "a.md.gz"])
@pytest.mark.parametrize("gap", [" ", "\n", "\n\n", ""])
def test_a_text_file_is_one_document_in_pieces(tmp_path, monkeypatch, name, gap):
    monkeypatch.setattr(text_files, "PIECE_CHARACTERS", 40)
    text = gap.join(f"word{i}" for i in range(60)) + "\n"
    (tmp_path / name).write_bytes(_compress(text.encode(), (tmp_path / name).suffix))
    rows = list(read_rows(tmp_path / name))
    assert "".join(row.value["text"] for row in rows) == text
    assert max(len(row.value["text"]) for row in rows) <= 40
    assert [row.has_earlier for row in rows] == [False] + [True] * (len(rows) - 1)
    assert [row.has_later for row in rows] == [True] * (len(rows) - 1) + [False]
    assert [row.line for row in rows][-1] == 1 + "".join(
        row.value["text"] for row in rows[:-1]
    ).count("\n")
    (tmp_path / "blank.txt").write_text(" \n" * 100)
    assert list(read_rows(tmp_path / "blank.txt")) == []


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
        ("a.jsonl.zst", _compress(b'{"a": 1}\n' * 1000, ".zst")[:-9], "must be undamaged"),
        ("a.csv.zst", b"no zst", "must be undamaged"),
        (
            "a.json.gz",
            gzip.compress(b"[" + b" " * 9999, mtime=0)[:20] + b"\0" * 50,
            "must be undamaged",
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
        ("a.arrow", b"ARROW1 no", "valid Arrow"),
        ("a.txt", "\u00e9".encode("latin-1"), "must be UTF-8"),
        ("a.md.bz2", b"no bz2", "must be undamaged"),
        ("a.txt.xz", b"no xz", "must be undamaged"),
        ("a.jsonl.gz", b"no gzip", "must be undamaged"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-20], "must be undamaged"),
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
