from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from diablo_ds.errors import UserError
from diablo_ds.reporting.record import find_runs
from diablo_ds.reporting.table import filtered, runs_json, runs_table, sorted_runs
from tests.unit.reporting.runs import write_run


@pytest.fixture
def root(tmp_path):
    """Three runs at different depths, and what is none."""
    write_run(tmp_path / "a", losses=(2.0, 1.0, 1.2), num_blocks="32", learning_rate=0.01)
    write_run(tmp_path / "deep" / "er" / "b", losses=(2.0, 0.5), num_blocks="64", dropout=0.1)
    write_run(tmp_path / "c", losses=(2.0, 1.5), num_blocks="4", model="models/other")
    write_run(tmp_path / ".hidden" / "d")
    write_run(tmp_path / "c" / "checkpoints" / "inside")
    (tmp_path / "link").symlink_to(tmp_path / "deep")
    return tmp_path


def _names(runs):
    return [run.name for run in runs]


def test_runs_are_found_below_a_folder_but_not_in_runs_links_and_hidden_folders(root):
    assert _names(find_runs(root)) == ["a", "c", "deep/er/b"]
    assert _names(find_runs(root / "a")) == ["a"]
    with pytest.raises(UserError, match="folder must be one with runs in it"):
        list(find_runs(root / "nothing"))


@pytest.mark.parametrize(
    ("conditions", "names"),
    [
        (["heldout_best<1.1"], ["a", "deep/er/b"]),
        (["heldout-best <= 1", "num_blocks>=64"], ["deep/er/b"]),
        (["num_blocks!=32"], ["c", "deep/er/b"]),
        (["model~other"], ["c"]),
        (["state=done", "dropout=0"], ["a", "c"]),
        (["learning_rate=1e-2"], ["a"]),
        (["keep_best=off"], ["a", "c", "deep/er/b"]),
        (["mfu>0"], []),
        (["mfu!=0"], ["a", "c", "deep/er/b"]),
    ],
)
def test_conditions_leave_the_runs_that_meet_them(root, conditions, names):
    assert _names(filtered(find_runs(root), conditions)) == names


@pytest.mark.parametrize(
    ("condition", "reason"),
    [("heldout_best", "a condition must be NAME"), ("lr=1", "did you mean learning_rate")],
)
def test_words_that_make_no_sense_are_refused_before_a_folder_is_read(tmp_path, condition, reason):
    nowhere = find_runs(tmp_path / "nothing")
    with pytest.raises(UserError, match=reason):
        filtered(nowhere, [condition])
    with pytest.raises(UserError, match="did you mean learning_rate"):
        sorted_runs(nowhere, "lr", descending=False)


def test_runs_are_sorted_by_columns_and_settings_those_without_a_value_last(root):
    runs = list(find_runs(root))
    assert _names(sorted_runs(runs, "heldout_best", descending=False)) == ["deep/er/b", "a", "c"]
    assert _names(sorted_runs(runs, "num_blocks", descending=True)) == ["deep/er/b", "a", "c"]
    assert _names(sorted_runs(runs, "dropout", descending=True))[0] == "deep/er/b"
    (root / "a" / "metrics.jsonl").unlink()
    for descending in (True, False):
        again = sorted_runs(find_runs(root), "heldout_best", descending=descending)
        assert again[-1].name == "a"


def test_the_table_has_a_row_for_each_run_and_says_once_what_all_share(root):
    text = runs_table(list(find_runs(root)))
    header, _, a, *_ = text.splitlines()
    assert " ".join(header.split()) == "run model N rate steps first best tokens/s GB state"
    assert " ".join(a.split()) == "a default 32 0.01 2/2 2.0000 1.0000 150 2.00 done"
    assert "The same in all: data default" in text


def test_json_has_numbers_in_base_units_and_every_setting(root):
    first = json.loads(runs_json(list(find_runs(root))))[0]
    assert first["folder"] == str(root / "a")
    assert (first["memory_bytes"], first["heldout_last"], first["best_step"]) == (2e9, 1.2, 1)
    assert first["settings"]["learning_rate"] == 0.01


def test_damaged_and_hostile_runs_are_rows_with_a_reason(root):
    (root / "a" / "run.json").write_text('{"no_such_setting": 1}')
    (root / "c" / "metrics.jsonl").write_text("{\n[]\n")
    (root / "deep" / "er" / "b" / "run.json").write_text("[" * 100_000)
    bad = write_run(root / "e").rename(root / "e\n\x1b[2J")
    os.unlink(bad / "metrics.jsonl")
    os.mkfifo(bad / "metrics.jsonl")
    text = runs_table(list(find_runs(root)))
    assert "\x1b" not in text
    assert "e\\n\\x1b[2J" in text
    assert "a: run config must have known keys only" in text
    assert "deep/er/b: file must be valid JSON" in text
    assert len(text.splitlines()) == 2 + 4 + 2


def test_it_is_made_without_torch(root):
    code = (
        "import sys, pathlib; from diablo_ds.reporting import record, table; "
        "table.runs_table(list(record.find_runs(pathlib.Path(sys.argv[1])))); print(*sys.modules)"
    )
    command = [sys.executable, "-c", code, root]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "click", "matplotlib"} & set(loaded)
