from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from datetime import datetime

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import save_run_config
from diablo_ds.files.layout import ADAPTER_CONFIG_FILE, RunFolder
from diablo_ds.files.owner_file import Owner, make_owner_folder, owner_file, to_bytes
from diablo_ds.launcher.rank_status import slowest_rank
from diablo_ds.launcher.status import describe_status, look
from diablo_ds.ranks.records import RankRecord, read_records, write_record
from diablo_ds.training.metrics_file import RecentPoints
from diablo_ds.training.run_events import read_events
from diablo_ds.training.run_numbers import RunNumbers


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
    assert "step        2, written" in text
    assert "rate        1.00 s per step, 1 tokens/s\n" in text
    assert "time left   unknown" in text


def test_the_rate_is_that_of_recent_steps_until_the_run_is_done(tmp_path):
    points = [
        {"step": step, "loss": 1.0, "step_s": 9.0 if step < 60 else 2.0, "tokens_per_s": 5.0}
        for step in range(1, 111)
    ]
    save_run_config(RunConfig(), tmp_path / "run.json")
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, points)))
    run_folder = RunFolder(tmp_path)
    run_folder.write_progress(200, 0, done=False)
    assert "2.00 s per step, 5 tokens/s in the last 50 steps" in describe_status(tmp_path)
    run_folder.adapter.mkdir()
    (run_folder.adapter / ADAPTER_CONFIG_FILE).write_text("{}")
    run_folder.write_progress(110, 0, done=True)
    of_all = RunNumbers.of(points)
    assert of_all.step_s == 9.0
    assert f"{of_all.step_s:.2f} s per step, 5 tokens/s\n" in describe_status(tmp_path)
    assert of_all.measured_text() == ""  # without memory, as of another version


def test_it_tells_steps_ranks_and_when_the_run_is_done(tmp_path):
    run_folder = RunFolder(tmp_path)
    _take_steps(tmp_path, 1, 2)
    run_folder.write_progress(4, 0, done=False)
    logs = run_folder.logs / "attempt-001"
    logs.mkdir(parents=True)
    write_record(logs, RankRecord(0, "a", 1, 2, 0.0, noted=time.time()))
    write_record(logs, RankRecord(1, "b", 1, 2, 0.0, ended=1.0, exit_code=1))
    text = describe_status(tmp_path)
    assert "step        2/4 (50.0%)" in text
    assert "time left   1:00" in text
    assert "ranks       1 running; 1 ended with exit code 1; on a, b" in text
    run_folder.adapter.mkdir()
    (run_folder.adapter / ADAPTER_CONFIG_FILE).write_text("{}")
    assert "time left   1:00" in describe_status(tmp_path)  # an earlier end, before new data
    run_folder.write_progress(4, 0, done=True)
    write_record(logs, RankRecord(0, "a", 1, 2, 0.0, ended=2.0, exit_code=0))
    assert "time left   done" in describe_status(tmp_path)


def _note(rank, phase, phase_s, noted=1000.0):
    return RankRecord(rank, "node", 1, 3, 0.0, phase=phase, phase_s=phase_s, noted=noted)


def test_the_slowest_rank_is_the_one_that_the_others_wait_for():
    waiting = [_note(rank, "update of step 7", 1.0) for rank in (0, 2)]
    assert slowest_rank([*waiting, _note(1, "backward of step 7", 2.0)]).rank == 1
    assert slowest_rank([*waiting, _note(1, "evaluation of step 6", 2.0)]).rank == 1
    assert slowest_rank([*waiting, _note(1, "update of step 7", 9.0)]) is None
    assert slowest_rank([*waiting, _note(1, "backward of step 2", 9.0, noted=900.0)]) is None
    both = [_note(0, "forward of step 7", 1.0), _note(1, "backward of step 7", 4.0)]
    assert slowest_rank([*both, waiting[1]]).rank == 1


def test_what_each_rank_does_is_told_while_the_run_lives(tmp_path):
    _take_steps(tmp_path, 1)
    logs = RunFolder(tmp_path).logs / "attempt-001"
    logs.mkdir(parents=True)
    for rank, phase in enumerate(["forward of step 2", "update of step 2", "update of step 2"]):
        write_record(logs, _note(rank, phase, 75.0, noted=time.time()))
    recent = RecentPoints(tmp_path / "metrics.jsonl")
    text, may_change = look(tmp_path, recent)
    assert "state       running, on node" in text
    assert "doing       2 in update of step 2, 1 in forward of step 2" in text
    assert "slowest     rank 0 on node, in forward of step 2 for 1:15" in text
    assert may_change
    for rank in range(3):
        write_record(logs, _note(rank, "forward of step 2", 1.0, noted=time.time() - 60))
    text, may_change = look(tmp_path, recent)
    assert "died, rank 0 on node vanished, in forward of step 2" in text
    assert not may_change


def test_an_owner_on_another_host_is_judged_by_its_heartbeat(tmp_path):
    _take_steps(tmp_path, 1)
    owner = Owner("t", "elsewhere", "another kernel", 1, 5, "me", "2026-01-01T00:00:00+00:00")
    make_owner_folder(tmp_path)
    file = owner_file(tmp_path, 1)
    file.write_bytes(to_bytes(owner))
    assert "state       running, process 1 of me on elsewhere" in describe_status(tmp_path)
    os.utime(file, (0, 0))
    assert "state       died, with process 1 of me" in describe_status(tmp_path)
    file.write_bytes(to_bytes(dataclasses.replace(owner, released=True)))
    assert "state       stopped" in describe_status(tmp_path)


def test_what_others_put_into_the_folder_stops_nothing(tmp_path):
    _take_steps(tmp_path, 1)
    make_owner_folder(tmp_path)
    os.mkfifo(owner_file(tmp_path, 1))
    os.mkfifo(tmp_path / "progress.json")
    logs = RunFolder(tmp_path).logs / "attempt-001"
    logs.mkdir(parents=True)
    os.mkfifo(logs / "rank-00000.json")
    late = RankRecord(1, "node", 1, 2, 0.0, ended=1e300, exit_code=1, noted=1e300)
    write_record(logs, late)  # a time that no calendar has
    assert read_records(logs, of_anyone=True) == []
    assert "step        1, written" in describe_status(tmp_path)


def test_events_tell_of_starts_and_of_how_they_ended(tmp_path):
    _take_steps(tmp_path, 1)
    values = json.loads((tmp_path / "run.json").read_text())
    change = {"field": "learning_rate", "old": 0.1, "new": 0.2}
    start = {"date": "2026-11-27T10:00:00+00:00", "hosts": [{"name": "a", "ranks": 2}]}
    again = {"date": "2026-11-27T12:00:00+00:00", "start_step": 4, "changes": [change]}
    values["starts"] = [again, start]
    (tmp_path / "run.json").write_text(json.dumps(values))
    files = RunFolder(tmp_path)
    logs = files.logs / "attempt-001"
    logs.mkdir(parents=True)
    end = datetime.fromisoformat("2026-11-27T11:00:00+00:00").timestamp()
    record = RankRecord(0, "a", 1, 1, 0.0, ended=end, exit_code=1, cause="no space", phase="saving")
    write_record(logs, record)
    events = read_events(files)
    assert [event.text for event in events] == [
        "started, 2 x ? on a",
        "rank 0 on a failed, in saving: no space",
        "continued after step 4, with learning_rate: 0.1 -> 0.2",
    ]
    assert [event.is_fault for event in events] == [False, True, False]
    assert all(event.text in describe_status(tmp_path) for event in events)


def test_it_answers_without_torch(tmp_path):
    _take_steps(tmp_path, 1)
    code = (
        "import sys, pathlib; from diablo_ds.launcher import explaining, status; "
        "status.describe_status(pathlib.Path(sys.argv[1])); print(*sys.modules)"
    )
    command = [sys.executable, "-c", code, tmp_path]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "click"} & set(loaded)
