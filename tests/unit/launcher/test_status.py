from __future__ import annotations

import json
import subprocess
import sys

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import save_run_config
from diablo_ds.files.layout import ADAPTER_CONFIG_FILE, RunFolder
from diablo_ds.launcher.status import describe_status
from diablo_ds.ranks.records import RankRecord, write_record


def _take_steps(folder, *steps):
    save_run_config(RunConfig(), folder / "run.json")
    point = {"loss": 2.0, "step_s": 30.0, "tokens_per_s": 100.0}
    lines = [json.dumps({"step": step, **point}) for step in steps]
    (folder / "metrics.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize("text", ["garbage", "[]", "{}", '{"num_steps": 0}', '{"num_steps": "x"}'])
def test_it_does_without_what_cannot_be_read(text, tmp_path):
    save_run_config(RunConfig(), tmp_path / "run.json")
    (tmp_path / "progress.json").write_text(text)
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": null, "step_s": 1.0, "tokens_per_s": 1.0}\n{"step": 2, "loss": 1.0}\n'
    )
    text = describe_status(tmp_path)
    assert "step        1, written" in text
    assert "time left   unknown" in text


def test_it_tells_steps_ranks_and_when_the_run_is_done(tmp_path):
    run_folder = RunFolder(tmp_path)
    _take_steps(tmp_path, 1, 2)
    run_folder.write_progress(4, 0, done=False)
    logs = run_folder.logs / "attempt-001"
    logs.mkdir(parents=True)
    write_record(logs, RankRecord(0, "a", 1, 2, 0.0))
    write_record(logs, RankRecord(1, "b", 1, 2, 0.0, ended=1.0, exit_code=1))
    text = describe_status(tmp_path)
    assert "step        2/4 (50.0%)" in text
    assert "time left   1:00" in text
    assert "ranks       1 running; 1 ended with exit code 1; on a, b" in text
    run_folder.adapter.mkdir()
    (run_folder.adapter / ADAPTER_CONFIG_FILE).write_text("{}")
    assert "time left   1:00" in describe_status(tmp_path)  # an earlier end, before new data
    run_folder.write_progress(4, 0, done=True)
    assert "time left   done" in describe_status(tmp_path)


def test_it_answers_without_torch(tmp_path):
    _take_steps(tmp_path, 1)
    code = (
        "import sys, pathlib; from diablo_ds.launcher import explaining, status; "
        "status.describe_status(pathlib.Path(sys.argv[1])); print(*sys.modules)"
    )
    command = [sys.executable, "-c", code, tmp_path]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "click"} & set(loaded)
