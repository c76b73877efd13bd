from __future__ import annotations

import pytest

from diablo_ds.data.corpora.chunking import split_chunks
from diablo_ds.data.corpora.sources import SourceFile
from tests.unit.data.prepare.preparing import pairs, read_texts, write_rows


def test_chunks_end_with_their_file_and_at_a_number_of_rows(tmp_path):
    sources = [
        SourceFile(name, write_rows(tmp_path / f"{name}.jsonl", pairs(count)))
        for name, count in (("one", 23), ("two", 4))
    ]
    num_bytes = []
    chunks = list(split_chunks(sources, on_bytes=num_bytes.append))
    assert [(c.number, c.file, len(c.rows)) for c in chunks] == [
        (0, 0, 10),
        (1, 0, 10),
        (2, 0, 3),
        (3, 1, 4),
    ]
    assert sum(num_bytes) == sum(source.path.stat().st_size for source in sources)
    limited = split_chunks(sources, limit=12)
    assert [len(chunk.rows) for chunk in limited] == [10, 2, 4]


def test_a_limit_reads_the_first_rows_of_each_source(prepare, tmp_path):
    for name in ("one", "two"):
        write_rows(tmp_path / f"{name}.jsonl", pairs(40, name))
    prepare(tmp_path / "one.jsonl", tmp_path / "two.jsonl", limit=13)
    expected = [row["prompt"] for name in ("one", "two") for row in pairs(13, name)]
    assert [text.split("?")[0] + "?" for text in read_texts(tmp_path / "out")] == expected


@pytest.mark.parametrize("overlong", ["cut-prompt", "cut-completion"])
def test_cut_rows_are_counted(prepare, tmp_path, overlong):
    rows = [*pairs(5), {"prompt": "p" * 20, "completion": "c" * 20}]
    manifest = prepare(write_rows(tmp_path / "d.jsonl", rows), max_length=30, overlong=overlong)
    assert manifest["parts"]["train"]["cut"] == 1
    assert manifest["parts"]["train"]["rows"] == 6
    assert manifest["rows_left_out"]["too_long"] == 0
    end = {"cut-prompt": "c" * 20 + "<|end|>", "cut-completion": "p" * 20 + "c" * 10}[overlong]
    assert read_texts(tmp_path / "out")[-1].endswith(end)


def test_tests_are_excluded_from_training_and_not_from_the_held_out_part(prepare, tmp_path):
    train = write_rows(tmp_path / "d.jsonl", pairs(30))
    test = write_rows(tmp_path / "test.jsonl", pairs(4, "Word"))
    manifest = prepare(train, val_source=(str(test),), exclude=(str(test),))
    assert manifest["parts"]["train"]["rows"] == 26
    assert manifest["parts"]["heldout"]["rows"] == 4
