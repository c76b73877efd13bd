from __future__ import annotations

import json

import pyarrow as pa
import pytest

from diablo_ds.data.labels import Example
from diablo_ds.data.prepare import chunk_files, pipeline
from diablo_ds.data.prepare.chunk_files import ChunkCounts, KeptExample
from diablo_ds.files.atomic import sha256_file
from diablo_ds.files.work_folders import find_work_folder
from tests.unit.data.prepare.preparing import pairs, read_files, write_rows


def test_a_chunk_comes_back_as_it_was_written(tmp_path):
    examples = [Example([1, 2], [-100, 2]), Example([3], [3]), Example([1, 2], [-100, 2])]
    kept = [KeptExample(e, is_cut=i == 1, row=i // 2) for i, e in enumerate(examples)]
    counts = ChunkCounts(
        0, 3, 1, {"rule": 1}, [(1, 7, "rule: x")], {}, 3, [9], {"pairs": 2}, {"note": 1}
    )
    path = chunk_files.chunk_file(tmp_path, 4)
    chunk_files.write_chunk(path, kept, counts)
    table = chunk_files.read_chunk(path)
    assert table.column("input_ids").to_pylist() == [e.input_ids for e in examples]
    assert table.column("labels").to_pylist() == [e.labels for e in examples]
    assert table.column("is_cut").to_pylist() == [False, True, False]
    assert chunk_files.row_numbers(table).tolist() == [0, 0, 1]
    digests = chunk_files.digests(table)
    assert (digests[0] == digests[2]).all()
    assert (digests[0] != digests[1]).any()
    read = chunk_files.read_finished(path, sha256_file(path))
    assert read._replace(shown=[tuple(line) for line in read.shown]) == counts
    assert chunk_files.read_finished(path, sha256_file(path)[::-1]) is None
    assert chunk_files.read_finished(path, None) is None
    assert chunk_files.read_finished(chunk_files.chunk_file(tmp_path, 5), "0" * 64) is None


def test_an_empty_chunk_can_be_read(tmp_path):
    counts = ChunkCounts(0, 0, 0, {}, [], {}, 0, [], {}, {})
    path = chunk_files.chunk_file(tmp_path, 0)
    chunk_files.write_chunk(path, [], counts)
    assert chunk_files.digests(chunk_files.read_chunk(path)).shape == (0, 2)
    assert chunk_files.read_finished(path, sha256_file(path)) == counts


def test_a_damaged_chunk_of_an_interrupted_run_is_made_again(prepare, tmp_path, monkeypatch):
    source = write_rows(tmp_path / "d.jsonl", pairs(25))
    uninterrupted = prepare(source, output="uninterrupted")
    with monkeypatch.context() as context:
        context.setattr(pipeline, "assemble", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(source)
    damaged = sorted(find_work_folder(tmp_path / "out")[0].glob("chunk-*"))
    damaged[0].write_bytes(damaged[0].read_bytes()[:-400])
    damaged[1].write_bytes(b"")
    assert prepare(source)["parts"] == uninterrupted["parts"]
    assert read_files(tmp_path / "out") == read_files(tmp_path / "uninterrupted")


def test_chunks_of_an_older_version_are_made_again(prepare, tmp_path, monkeypatch):
    path = write_rows(tmp_path / "d.jsonl", pairs(40))
    expected = prepare(path, output="expected", val_share=0.1)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "assemble", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(path, val_share=0.1)
    for file in find_work_folder(tmp_path / "out")[0].glob("chunk-*.arrow"):
        with pa.ipc.open_stream(file.read_bytes()) as reader:
            table = reader.read_all().drop_columns("row")
        counts = json.loads(table.schema.metadata[b"counts"])
        del counts["too_long"]
        table = table.replace_schema_metadata({"counts": json.dumps(counts)})
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
            out.write_table(table)
    assert prepare(path, val_share=0.1)["parts"] == expected["parts"]
