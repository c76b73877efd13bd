import json
import re
import sys
from contextlib import contextmanager

import pytest

from benchmarks.quality import scheduling
from benchmarks.quality.arms import Findings
from benchmarks.quality.parts import wanted_of
from benchmarks.quality.records import Records, read_records
from benchmarks.quality.scheduling import BrokenStudyError, Scheduler
from benchmarks.quality.workers import Worker
from diablo_ds.errors import UserError
from tests.unit.benchmarks.quality import made_up

STUDY = made_up.study()


@contextmanager
def _scheduler(folder, *, slots=1, budget_s=3600.0, misbehaviour=("none", 0)):
    """A scheduler of stand-ins; only the first process of a slot misbehaves."""
    started = []

    def start(slot, messages):
        words = misbehaviour if slot not in started else ("none", 0)
        started.append(slot)
        command = [sys.executable, "-m", "tests.unit.benchmarks.quality.stand_in"]
        return Worker([*command, *map(str, words)], folder / "worker.log", messages, {})

    with Records(folder) as records:
        findings = Findings(records.all, "cpu")
        scheduler = Scheduler(STUDY, records, findings, start, slots, budget_s)
        try:
            yield scheduler
        finally:
            scheduler.close()


@pytest.mark.parametrize("slots", [1, 2])
def test_a_part_is_trained_until_nothing_is_left(tmp_path, slots, capsys):
    with _scheduler(tmp_path, slots=slots) as scheduler:
        assert scheduler.train_parts(["rate"])
    records = read_records(tmp_path)
    assert len({r["key"] for r in records}) == len(records)
    assert all((r["part"], r["device"]) == ("rate", "cpu") for r in records)
    assert not wanted_of("rate", STUDY, Findings(records, "cpu"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(records)
    # Of two that are trained at a time either may end first.
    text = r"Learning rate: DiaBlo N=64, fp32, rate 0\.002.* held-out loss 1\."
    assert any(re.search(text, line) for line in lines)


def test_a_second_call_continues_and_repeats_nothing(tmp_path):
    few = tmp_path / "records.jsonl"
    with _scheduler(tmp_path) as scheduler:
        scheduler.train_parts(["permutation"])
    lines = few.read_text().splitlines(keepends=True)
    few.write_text("".join(lines[:3]) + lines[3][:50])  # the machine went down
    with Records(tmp_path) as records:
        assert records.num_dropped_bytes == 50
    with _scheduler(tmp_path) as scheduler:
        assert scheduler.train_parts(["permutation"])
    again = few.read_text().splitlines(keepends=True)
    assert again[:3] == lines[:3]
    assert sorted(json.loads(a)["key"] for a in again) == sorted(
        json.loads(a)["key"] for a in lines
    )


def test_nothing_starts_that_does_not_fit_the_budget(tmp_path):
    with _scheduler(tmp_path, budget_s=1.0) as scheduler:
        assert not scheduler.train_parts(["rate"])
    assert read_records(tmp_path) == []


def test_a_worker_that_dies_is_a_failure_and_the_rest_goes_on(tmp_path):
    with _scheduler(tmp_path, misbehaviour=("die", 2)) as scheduler:
        assert scheduler.train_parts(["permutation"])
    records = read_records(tmp_path)
    (failed,) = [r for r in records if r["status"] == "failed"]
    assert "signal 9: out of memory" in failed["reason"]
    assert failed["key"] in {r["key"] for r in records if r["status"] == "done"}  # tried again


def test_a_worker_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(scheduling, "_LEAST_LIMIT_S", 0.5)
    monkeypatch.setattr(scheduling, "_LIMIT_FACTOR", 0.0)
    with _scheduler(tmp_path, misbehaviour=("hang", 0)) as scheduler:
        spec = wanted_of("rate", STUDY, Findings([], "cpu"))[0]

        def lift(*_):
            monkeypatch.setattr(scheduling, "_LEAST_LIMIT_S", 600.0)

        monkeypatch.setattr(scheduler.progress, "end", lift)
        scheduler.train_one("rate", spec)
    first = read_records(tmp_path)[0]
    assert first["status"] == "failed"
    assert "it took more than 0" in first["reason"]


def test_when_all_fails_it_stops_and_says_why(tmp_path):
    with (
        _scheduler(tmp_path, misbehaviour=("refuse", 0)) as scheduler,
        pytest.raises(BrokenStudyError, match="num_held_out must be at most 10"),
    ):
        scheduler.train_parts(["rate"])
    assert len(read_records(tmp_path)) == scheduling.MAX_FAILURES_IN_A_ROW


def test_one_process_at_a_time_has_a_folder(tmp_path):
    with Records(tmp_path), pytest.raises(UserError, match="one process at a time"):
        Records(tmp_path)


def test_a_damaged_line_before_the_last_is_an_error(tmp_path):
    record = made_up.record(STUDY.spec("full"))
    with Records(tmp_path) as records:
        records.add(record)
    path = tmp_path / "records.jsonl"
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(UserError, match="line 1"):
        read_records(tmp_path)
    path.write_text(path.read_text().removeprefix("{}\n") + "damaged\n")
    assert len(read_records(tmp_path)) == 1
