from __future__ import annotations

import os

import pytest

from diablo_ds.errors import UserError
from diablo_ds.files.layout import ADAPTER_CONFIG_FILE
from diablo_ds.launcher.explaining import explain_end
from diablo_ds.ranks.records import RankRecord, write_record


def _write(folder, *codes, world_size=None, **values):
    folder.mkdir(parents=True, exist_ok=True)
    for rank, code in enumerate(codes):
        size = world_size or len(codes)
        record = RankRecord(rank, "h", 1, size, 0.0, ended=1.0 + rank, exit_code=code, **values)
        write_record(folder, record)


@pytest.mark.parametrize(
    ("codes", "values", "code", "text"),
    [
        ((0, 0), {}, 0, "the run is done"),
        ((85, 85), {"by_request": True}, 85, "the run was stopped"),
        ((2, 2), {}, 2, "rank 0 on h failed first"),
        ((98, 1), {}, 98, "rank 0 on h failed first"),
        ((1, 2), {}, 1, "rank 0 on h failed first"),  # the first one's code counts
        ((0,), {"world_size": 2}, 1, "1 of 2 ranks left no record"),
        ((), {}, 1, "no rank left a record"),
    ],
)
def test_the_end_of_a_start_has_a_text_and_an_exit_code(codes, values, code, text, tmp_path):
    _write(tmp_path, *codes, **values)
    end = explain_end(tmp_path)
    assert end.exit_code == code
    assert text in end.text


def test_of_a_run_folder_the_last_start_is_explained(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    for number, (name, code) in enumerate((("2", 1), ("1", 0))):
        _write(tmp_path / "logs" / name, code)
        os.utime(tmp_path / "logs" / name / "rank-00000.json", (number, number))
    assert explain_end(tmp_path).exit_code == 0


def test_a_path_that_holds_no_logs_is_named(tmp_path):
    with pytest.raises(UserError, match=r"got .*none, which does not exist"):
        explain_end(tmp_path / "none")
    (tmp_path / ADAPTER_CONFIG_FILE).write_text("{}")
    with pytest.raises(UserError, match=r"or a run folder; got .*, an adapter"):
        explain_end(tmp_path)
