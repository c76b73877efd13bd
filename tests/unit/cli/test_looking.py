from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from diablo_ds.cli.main import main
from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import save_run_config
from diablo_ds.ranks.records import RankRecord, write_record


def _run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def folders(tmp_path):
    run, logs, dataset = tmp_path / "run", tmp_path / "run" / "logs", tmp_path / "dataset"
    logs.mkdir(parents=True)
    save_run_config(RunConfig(), run / "run.json")
    write_record(logs, RankRecord(0, "h", 1, 1, 0.0, ended=1.0, exit_code=2))
    dataset.mkdir()
    (dataset / "manifest.json").write_text("{}")
    return run, logs, dataset


@pytest.mark.parametrize(("command", "code"), [("status", 0), ("explain", 2)])
def test_the_old_name_does_the_same_with_a_note(command, code, folders):
    run, logs, _ = folders
    path = run if command == "status" else logs
    new, old = _run(command, path), _run("slurm", command, path)
    assert (new.exit_code, old.exit_code) == (code, code)
    note = f"Note: main slurm {command} is now diablo-ds {command}\n"
    assert old.stderr == note + new.stderr
    assert old.stdout == new.stdout
    assert command not in _run("slurm", "--help").stdout.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (
            ["inspect"],
            "a run folder, a checkpoint, an adapter, a prepared dataset or the folder of an "
            "evaluation",
        ),
        (["status"], "a run folder"),
        (["prepare", "--inspect"], "the folder of a dataset made by diablo-ds prepare"),
    ],
)
def test_a_folder_of_another_kind_is_named(words, wanted, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    result = _run(*words, tmp_path)
    assert result.exit_code == 2
    assert f"Error: path must be {wanted}; got {tmp_path}, a base model\n" == result.stderr
    missing = _run(*words, tmp_path / "none")
    assert "none, which does not exist" in missing.stderr


def test_inspect_reads_a_dataset_from_its_record_alone(tmp_path):
    counts = dict.fromkeys(("rows", "cut", "tokens", "target_tokens", "longest", "largest_id"), 3)
    part = {**counts, "length_histogram": {"bin_width": 1, "counts": [3]}}
    record = {
        "tokenizer": {"name": "t", "fingerprint": "f", "probe": [1]},
        **{key: [] for key in ("sources", "val_sources", "excluded")},
        "rows_in": {"n": 3},
        "rows_left_out": {
            **dict.fromkeys(("bad", "too_long", "duplicates", "not_in_mix"), 0),
            "in_tests": {},
        },
        "licences": ["MIT"],
        "parts": {"train": part},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(record))
    shown = _run("inspect", tmp_path).stdout
    assert f"Dataset {tmp_path}\n  tokenizer    t\n  3 rows read: 3 n\n" in shown
    assert "train: 3 examples" in shown
    assert f"diablo-ds prepare --inspect {tmp_path}" in shown
