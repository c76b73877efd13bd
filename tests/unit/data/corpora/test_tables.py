from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from diablo_ds.data.corpora.raw_rows import Unreadable
from diablo_ds.data.corpora.reading import read_rows
from diablo_ds.data.corpora.tables import read_csv


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


def test_rows_of_a_csv_file_have_the_header_s_fields():
    rows = list(read_csv(io.BytesIO(b"a,b\n1,2\n\n3\n"), Path("x.csv")))
    assert [(row.line, row.value) for row in rows] == [
        (2, {"a": "1", "b": "2"}),
        (4, Unreadable("a row must have as many fields as the header")),
    ]
