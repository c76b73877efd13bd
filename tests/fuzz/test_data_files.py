"""Any bytes as a source file: rows, rejected rows with a reason, or an error with the file."""

from __future__ import annotations

import datetime
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diablo_ds.data.corpora.encoding import RowEncoder
from diablo_ds.data.corpora.reading import read_rows
from tests.fuzz.errors import result_or_user_error
from tests.fuzz.mutations import VALUES, mutated
from tests.tiny import tiny_tokenizer

ROWS = [
    {"prompt": "a\u00e9", "completion": "b\U0001f98a", "n": 1.5},
    {"prompt": "c", "completion": "d", "n": -7},
    {"messages": [{"role": "user", "content": "e"}, {"role": "assistant", "content": "f"}]},
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
COLUMNS = {key: [row[key] for row in ROWS[:2]] for key in ROWS[0]}
CSV = b'prompt,completion,n\n"a\n""b""",c,1\nd,e,2\n'


def _parquet(**options):
    sink = pa.BufferOutputStream()
    day = datetime.date(2026, 1, 2)
    nested = [{"x": [1, None]}, {"x": []}]
    table = pa.table(
        {"prompt": ["a", "b"], "completion": ["c", "d"], "day": [day, day], "n": nested}
    )
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def _zst(data):
    return pa.Codec("zstd").compress(data, asbytes=True)


VALID = {
    "a.jsonl": [LINES, LINES.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + LINES],
    "a.json": [LINES, json.dumps(ROWS).encode(), json.dumps(COLUMNS, indent=1).encode()],
    "a.csv": [CSV, CSV.replace(b"\n", b"\r\n")],
    "a.parquet": [_parquet(), _parquet(compression="none", use_dictionary=False)],
    "a.jsonl.gz": [gzip.compress(LINES, mtime=0), gzip.compress(LINES, mtime=0) * 2],
    "a.csv.zst": [_zst(CSV), _zst(CSV) + _zst(CSV)],
}


@pytest.fixture(scope="module")
def encoder():
    return RowEncoder("auto", "auto", tiny_tokenizer())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def _check(path, encoder):
    rows = result_or_user_error(lambda: list(read_rows(path)), path)
    for result in encoder.encode(rows or []):
        getattr(result, "reason", "").encode()  # must be encodable


@pytest.mark.parametrize("name", VALID)
@given(data=st.data())
def test_damaged_files(name, data, folder, encoder):
    content = data.draw(mutated(VALID[name]))
    (folder / name).write_bytes(content)
    _check(folder / name, encoder)


@pytest.mark.parametrize("name", VALID)
@given(content=st.binary(max_size=64))
def test_any_bytes(name, content, folder, encoder):
    (folder / name).write_bytes(content)
    _check(folder / name, encoder)


@given(rows=st.lists(st.fixed_dictionaries({"prompt": VALUES, "completion": VALUES}), max_size=3))
def test_any_values_in_rows(rows, folder, encoder):
    texts = [json.dumps(row) for row in rows]
    (folder / "a.jsonl").write_text("\n".join(texts))
    (folder / "a.json").write_text(f"[{','.join(texts)}]")
    for name in ("a.jsonl", "a.json"):
        _check(folder / name, encoder)


@given(content=VALUES)
def test_any_value_as_a_json_file(content, folder, encoder):
    (folder / "a.json").write_text(json.dumps(content))
    _check(folder / "a.json", encoder)


@given(messages=st.lists(st.fixed_dictionaries({"role": VALUES, "content": VALUES}), max_size=3))
def test_any_values_in_messages(messages, folder, encoder):
    (folder / "a.jsonl").write_text(json.dumps({"messages": messages}))
    _check(folder / "a.jsonl", encoder)
