from __future__ import annotations

import gzip

import pytest

from diablo_ds.data.corpora.opening import open_source
from diablo_ds.data.corpora.reading import read_rows
from diablo_ds.errors import UserError


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz"])
def test_files_that_cannot_be_opened_are_named(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"source file must be readable; got .*: Is a directory"):
        list(read_rows(tmp_path / name))


def test_bytes_are_counted_as_they_are_on_disk(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"x\n" * 10_000))
    num_bytes = []
    with open_source(path, num_bytes.append) as file:
        assert file.read() == b"x\n" * 10_000
    assert sum(num_bytes) == path.stat().st_size < 1000
