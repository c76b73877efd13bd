"""Small files that would take all memory, or lead a reader out of its own: refused."""

from __future__ import annotations

import gzip
import lzma
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diablo_ds.data import arrow_bounds
from diablo_ds.data.corpora import parquet_pages, tables
from diablo_ds.data.corpora.reading import read_rows
from diablo_ds.errors import UserError
from diablo_ds.files import bounds

ROW = b'{"prompt": "a", "completion": "b"}\n'


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Limits so small that tests need no large data."""
    monkeypatch.setattr(bounds, "FREE_BYTES", 1 << 20)
    monkeypatch.setattr(arrow_bounds, "FREE_BYTES", 1 << 20)
    monkeypatch.setattr(parquet_pages, "MAX_PAGE_BYTES", 1 << 20)


def _repeated(text, count):
    indices = pa.array(np.zeros(count, np.int32))
    return pa.DictionaryArray.from_arrays(indices, pa.array([text]))


def _write_arrow(path, table, *, is_file=False, **options):
    new = pa.ipc.new_file if is_file else pa.ipc.new_stream
    options = pa.ipc.IpcWriteOptions(**options)
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema, options=options) as writer:
        writer.write_table(table)


def _refused(path, rule):
    with pytest.raises(UserError, match=rule) as caught:
        for _ in read_rows(path):
            pass
    assert str(path) in str(caught.value)


def test_compressed_rows_without_end(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(ROW * 200_000))
    _refused(path, "200 times its size")
    assert sum(1 for _ in read_rows(_plain(tmp_path))) == 200_000


def _plain(folder):
    (folder / "a.jsonl").write_bytes(ROW * 200_000)
    return folder / "a.jsonl"


def test_an_xz_header_that_asks_for_much_memory(tmp_path):
    packed = bytearray(lzma.compress(ROW, lzma.FORMAT_ALONE))
    packed[1:5] = struct.pack("<I", 3 << 29)
    (tmp_path / "a.jsonl.xz").write_bytes(packed)
    _refused(tmp_path / "a.jsonl.xz", "Memory usage limit")


@pytest.mark.parametrize("between", [b"", bytes(4), bytes(8)])
def test_xz_streams_one_after_the_other(between, tmp_path):
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(ROW) + between + lzma.compress(ROW))
    assert len(list(read_rows(tmp_path / "a.jsonl.xz"))) == 2


def test_a_text_that_many_rows_of_parquet_repeat(tmp_path):
    table = pa.table({"prompt": _repeated("a" * 100_000, 10_000)})
    pq.write_table(table, tmp_path / "a.parquet", store_schema=False)
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    _refused(tmp_path / "a.parquet", "200 times its size")


def test_few_rows_at_once_where_a_dictionary_is_large(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": _repeated("a" * 500_000, 10), "n": range(10)}), path)
    most = parquet_pages.rows_at_once(path, 1000)
    assert 100 < most < 140
    pq.write_table(pa.table({"a": ["b"] * 10, "n": [[1.5] * 9] * 10}), path)
    assert parquet_pages.rows_at_once(path, 1000) == 1000


def test_what_a_footer_says_is_what_pyarrow_reads_in_it(tmp_path):
    rows = {"a": ["b", None] * 500, "n": [[1.5], []] * 500, "s": [{"c": 1, "d": "e"}] * 1000}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet", row_group_size=300)
    metadata = pq.ParquetFile(tmp_path / "a.parquet").metadata
    with (tmp_path / "a.parquet").open("rb") as file:
        groups = list(parquet_pages._row_groups(file))
    assert [num_rows for _, num_rows in groups] == [300, 300, 300, 100]
    for number, (columns, _) in enumerate(groups):
        group = metadata.row_group(number)
        theirs = [group.column(c) for c in range(group.num_columns)]
        assert [(c.name, c.num_values, c.num_bytes) for c in columns] == [
            (c.path_in_schema, c.num_values, c.total_compressed_size) for c in theirs
        ]
        assert [c.start for c in columns] == [c.dictionary_page_offset for c in theirs]
        assert [c.is_text for c in columns] == [c.physical_type == "BYTE_ARRAY" for c in theirs]


def test_a_footer_that_counts_more_levels_than_a_column_has(tmp_path):
    """pyarrow ends the process when it is asked for such a column."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": ["b", "c"]}), path)
    content = path.read_bytes()
    # An empty list of repetition levels, and two numbers of definition levels: the other way round.
    empty, numbers = b"\x19\x06", b"\x19\x26\x00\x04"
    assert content.count(empty + numbers) == 1
    path.write_bytes(content.replace(empty + numbers, numbers + empty))
    _refused(path, "histogram")


def test_a_footer_that_names_a_column_by_numbers(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": ["b", "c"]}), path)
    name, numbers = b"\x19\x18\x01a", b"\x19\x25\x02\x02"
    assert name in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(name, numbers))
    with path.open("rb") as file, pytest.raises(ValueError, match="names of a column"):
        list(parquet_pages._row_groups(file))


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_a_huge_page_of_parquet(version, compression, tmp_path):
    table = pa.table({"prompt": ["b", "a" * (1 << 20)]})
    options = {"use_dictionary": False, "compression": compression, "data_page_version": version}
    pq.write_table(table, tmp_path / "a.parquet", **options)
    _refused(tmp_path / "a.parquet", "a page of a parquet file")


def test_compressed_zeros_in_arrow(tmp_path):
    table = pa.table({"prompt": ["a" * (2 << 20)]})
    _write_arrow(tmp_path / "a.arrow", table, compression="zstd")
    _refused(tmp_path / "a.arrow", "when it is decompressed")
    _write_arrow(tmp_path / "a.arrow", table)
    assert len(list(read_rows(tmp_path / "a.arrow"))) == 1


def test_one_value_for_millions_of_rows_of_arrow(tmp_path):
    run = pa.RunEndEncodedArray.from_arrays(pa.array([10_000_000], pa.int32()), pa.array(["a"]))
    _write_arrow(tmp_path / "a.arrow", pa.table({"prompt": run}))
    _refused(tmp_path / "a.arrow", "200 times its size")


@pytest.mark.parametrize("is_file", [False, True])
def test_arrow_offsets_that_lead_elsewhere(is_file, tmp_path):
    path = tmp_path / "a.arrow"
    _write_arrow(path, pa.table({"prompt": ["a", "b"]}), is_file=is_file)
    content = path.read_bytes()
    good, wild = struct.pack("<3i", 0, 1, 2), struct.pack("<3i", 0, 2**31 - 2, 2**31 - 1)
    assert good in content
    path.write_bytes(content.replace(good, wild))
    _refused(path, "must be valid Arrow")


def test_a_record_of_csv_without_end(monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "_MAX_RECORD_CHARACTERS", 1000)
    (tmp_path / "a.csv").write_bytes(b"a,b\n" + b'"\n",' * 1000)
    _refused(tmp_path / "a.csv", "a row of a CSV file")
    (tmp_path / "a.csv").write_bytes(b"a,b\n" + b'"\n",x\n' * 1000)
    assert len(list(read_rows(tmp_path / "a.csv"))) == 1000


def test_an_array_of_very_many_small_values_takes_no_square_of_its_size(tmp_path):
    (tmp_path / "a.json").write_bytes(b"[" + b"1," * 300_000 + b"1]")
    assert len(list(read_rows(tmp_path / "a.json"))) == 300_001
