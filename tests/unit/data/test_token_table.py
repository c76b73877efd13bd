from __future__ import annotations

import json
import shutil

import datasets
import numpy as np
import pyarrow as pa
import pytest

from diablo_ds.data.labels import IGNORE_LABEL
from diablo_ds.data.token_table import TokenTable
from diablo_ds.errors import UserError
from tests.tiny import encode_pairs


def _plain(examples):
    return [[list(map(int, part)) for part in example] for example in examples]


def test_a_table_finds_rows_in_many_chunks():
    rows = encode_pairs([(f"{i}", "x" * i) for i in range(1, 20)])
    parts = [rows[:7], [], rows[7:8], rows[8:]]
    chunks = [c for part in parts for c in TokenTable.from_examples(part)._chunks]
    table = TokenTable(chunks)
    assert len(table) == 19
    assert _plain(table[i] for i in range(19)) == _plain(rows)
    assert table.lengths().tolist() == [len(row.input_ids) for row in rows]
    assert table.largest_id() == 256
    assert len(TokenTable([])) == len(TokenTable([]).lengths()) == 0


INTS = pa.list_(pa.int32())


def _save(folder, ids, labels):
    table = pa.table({"input_ids": ids, "labels": labels})
    datasets.Dataset(datasets.table.InMemoryTable(table)).save_to_disk(folder)
    return folder


@pytest.mark.parametrize(
    "kind", [INTS, pa.list_(pa.int64()), pa.large_list(pa.int32()), pa.list_(pa.uint16(), 2)]
)
def test_lists_of_any_integers_are_read(tmp_path, kind):
    rows = pa.array([[1, 2], [3, 4]], kind)
    table = TokenTable.load(_save(tmp_path / "d", rows, rows), "train")
    assert [table[i].input_ids.tolist() for i in range(2)] == [[1, 2], [3, 4]]
    assert table[0].input_ids.dtype == np.int32


@pytest.mark.parametrize(
    ("ids", "labels"),
    [
        (pa.array([1, 2]), pa.array([1, 2])),
        (pa.array(["a", "b"]), pa.array(["a", "b"])),
        (pa.array([["a"], ["b"]]), pa.array([["a"], ["b"]])),
        (pa.array([[2**40]]), pa.array([[1]])),
        (pa.array([[1, None]], INTS), pa.array([[1, 2]], INTS)),
        (pa.array([[1], None], INTS), pa.array([[1], None], INTS)),
        (pa.array([[0.5]]), pa.array([[1]])),
        (pa.array([[[1]]]), pa.array([[[1]]])),
        (pa.array([{"x": 1}]), pa.array([{"x": 1}])),
        (pa.array([[1, 2]], INTS), pa.array([[1]], INTS)),
        (pa.array([[]], INTS), pa.array([[]], INTS)),
    ],
)
def test_other_columns_are_refused(tmp_path, ids, labels):
    folder = _save(tmp_path / "d", ids, labels)
    with pytest.raises(UserError, match=r"must (be lists of 32-bit|have a token)") as caught:
        TokenTable.load(folder, "train")
    assert type(caught.value) is UserError
    assert str(folder) in str(caught.value)


def test_negative_tokens_are_refused():
    offsets, ids = np.array([0, 2]), np.array([1, 2], np.int32)
    good = np.array([IGNORE_LABEL, 2], np.int32)
    TokenTable([(offsets, ids, good)]).check_tokens("x")
    for bad in ((-ids, good), (ids, -ids)):
        with pytest.raises(UserError, match=r"at least 0.*; got -2 in x"):
            TokenTable([(offsets, *bad)]).check_tokens("x")
    assert TokenTable([(offsets, ids, np.array([7, 9], np.int32))]).largest_id() == 9


def test_damaged_datasets_are_named(tmp_path):
    intact = _save(tmp_path / "intact", *2 * [pa.array([[1] * 500] * 20, INTS)])
    (data_file,) = intact.glob("*.arrow")
    content = data_file.read_bytes()
    damages = {
        data_file.name: [b"", content[:100], content[: len(content) // 2], b"x" * 1000],
        "state.json": [b"{}", b"[]", b"{", b"\xff", json.dumps({"_data_files": 7}).encode()],
        "dataset_info.json": [b"[]", b"{", b'{"features": 7}'],
    }
    for name, contents in damages.items():
        for number, damaged in enumerate(contents):
            folder = shutil.copytree(intact, tmp_path / f"{name}-{number}")
            (folder / name).write_bytes(damaged)
            with pytest.raises(UserError, match=r"must be (a prepared dataset|lists)") as caught:
                TokenTable.load(folder, "train")
            assert type(caught.value) is UserError
            assert str(folder) in str(caught.value)


@pytest.mark.parametrize("rows", [["a", "b"], [1, None], [0.5, 1.0]])
def test_row_numbers_that_are_none_are_refused(rows, tmp_path):
    lists = pa.array([[1], [2]], pa.list_(pa.int32()))
    table = pa.table({"input_ids": lists, "labels": lists, "source_row": pa.array(rows)})
    datasets.Dataset(datasets.table.InMemoryTable(table)).save_to_disk(tmp_path / "d")
    with pytest.raises(UserError, match="source_row must be a column of integers"):
        TokenTable.load(tmp_path / "d", "train")
