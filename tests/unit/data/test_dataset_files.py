from __future__ import annotations

import json
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pytest

from diablo_ds.data import dataset_files
from diablo_ds.data.dataset_files import COLUMNS, ROW_COLUMN, TOKENS, is_tokenised, read_columns
from diablo_ds.errors import UserError

ROWS = [[1, 2, 3], [4], [5, 6]]


def _write(folder, *, by_row=False, parts=("train",)):
    folder.mkdir()
    for part in parts:
        (folder / part).mkdir()
        names = [dataset_files.shard_name(number, 2) for number in range(2)]
        for name, rows in zip(names, (ROWS[:2], ROWS[2:]), strict=True):
            lists = pa.array(rows, TOKENS)
            table = pa.table(dict.fromkeys(COLUMNS, lists))
            if by_row:
                table = table.append_column(ROW_COLUMN, pa.array([0] * len(rows)))
            with dataset_files.open_shard(folder / part / name, by_row=by_row) as shard:
                shard.write_table(table)
        dataset_files.write_part_files(folder / part, part, names, by_row=by_row, identity="x")
    dataset_files.write_part_names(folder, dict.fromkeys(parts, len(ROWS)))
    return folder


@pytest.mark.parametrize("by_row", [False, True])
def test_what_is_written_is_read_by_the_library_and_by_us(tmp_path, by_row):
    folder = _write(tmp_path / "d", by_row=by_row, parts=("train", "heldout"))
    assert dataset_files.is_dataset(folder)
    assert dataset_files.is_dataset(folder / "train")
    assert not dataset_files.is_dataset(tmp_path)
    for part in ("train", "heldout"):
        table = read_columns(folder, part)
        assert table.column_names == [*COLUMNS, ROW_COLUMN][: 2 + by_row]
        assert table.column("input_ids").to_pylist() == ROWS
        rows = datasets.load_from_disk(str(folder))[part]
        assert rows["labels"][:] == ROWS
        assert rows.features["input_ids"].feature.dtype == "int32"


def test_the_installed_version_is_a_tested_one():
    assert int(datasets.__version__.split(".")[0]) in dataset_files.TESTED_MAJORS


def test_with_an_untested_version_a_written_dataset_must_be_readable(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_files, "TESTED_MAJORS", (3,))
    assert read_columns(_write(tmp_path / "good"), "train").num_rows == len(ROWS)
    monkeypatch.setattr(dataset_files, "_INFO_FILE", "info.json")  # as if another were expected
    with pytest.raises(UserError, match=r"package datasets must be version 3; got .* differently"):
        _write(tmp_path / "bad")


def test_rows_in_another_order_are_read_in_that_order(tmp_path):
    rows = datasets.load_from_disk(str(_write(tmp_path / "d")))["train"]
    rows.select([2, 0]).save_to_disk(tmp_path / "selected")
    table = read_columns(tmp_path / "selected", "train")
    assert table.column("input_ids").to_pylist() == [ROWS[2], ROWS[0]]


def test_missing_parts_and_columns_are_named(tmp_path):
    with pytest.raises(UserError, match=r"must have a part 'heldout'; got train in"):
        read_columns(_write(tmp_path / "d"), "heldout")
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train\\ud800"]}')
    with pytest.raises(UserError, match="must be a prepared dataset") as caught:
        read_columns(tmp_path / "d", "train")
    assert r"train\ud800" in str(caught.value)  # written out, so that any file can hold the error
    datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(tmp_path / "raw")
    with pytest.raises(UserError, match="must have columns input_ids and labels; got text"):
        read_columns(tmp_path / "raw", "train")


def test_a_column_whose_name_is_not_utf_8(tmp_path):
    folder = _write(tmp_path / "d")
    (shard, *_) = sorted((folder / "train").glob("*.arrow"))
    content = shard.read_bytes()
    shard.write_bytes(content.replace(b"labels", b"labe\xffs"))
    assert is_tokenised(folder)
    with pytest.raises(UserError, match=r"must be a prepared dataset; got .*decode byte"):
        read_columns(folder, "train")


def test_no_code_beside_a_dataset_is_run(tmp_path):
    folder, mark = _write(tmp_path / "data"), tmp_path / "mark"
    code = f"open({str(mark)!r}, 'w')"
    for name in ("data.py", "dataset.py", "__init__.py", "train/data.py"):
        (folder / name).write_text(code)
    (folder / "train" / "data.pkl").write_bytes(b"cos\nsystem\n(S'touch " + bytes(mark) + b"'\ntR.")
    info = folder / "train" / "dataset_info.json"
    values = {**json.loads(info.read_text()), "builder_name": "data", "script_version": "1.0.0"}
    info.write_text(json.dumps(values))
    assert read_columns(folder, "train").num_rows == len(ROWS)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../data-00000-of-00002.arrow", "/etc/passwd", "..", 7, None])
def test_a_dataset_names_files_of_its_own_folder(name, tmp_path):
    folder = _write(tmp_path / "data")
    state = folder / "train" / "state.json"
    values = json.loads(state.read_text())
    state.write_text(json.dumps({**values, "_data_files": [{"filename": name}]}))
    with pytest.raises(UserError, match="files of its own folder"):
        read_columns(folder, "train")


def test_an_indices_mapping_leads_to_rows_of_the_dataset(tmp_path):
    rows = pa.table(dict.fromkeys(COLUMNS, pa.array(ROWS, TOKENS)))

    def check(*indices):
        mapping = pa.table({"indices": pa.array(indices, pa.uint64())})
        dataset_files._check_indices(SimpleNamespace(data=rows, _indices=mapping), tmp_path)

    check(2, 0)
    check()
    with pytest.raises(UserError, match=f"got 2 to {2**40} of 3"):
        check(2, 2**40)
