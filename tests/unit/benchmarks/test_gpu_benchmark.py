import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from benchmarks.gpu import models, stages
from benchmarks.gpu.records import Case, Records
from benchmarks.gpu.report import write_gpu_report
from diablo_ds.errors import UserError
from tests.waiting import WAIT_S, wait_until


def _run(folder, *words):
    command = [sys.executable, "-m", "benchmarks.gpu", "--scale", "tiny", "--output", str(folder)]
    variables = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *words],
        env={**os.environ, **variables},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.mark.slow
def test_the_command_measures_and_a_second_run_goes_on(tmp_path):
    wanted = ("ceilings", "step-zero0", "layers", "loss", "chosen")
    _run(tmp_path, *(word for stage in wanted for word in ("--stage", stage)))
    records = Records(tmp_path / "results.jsonl")
    ceilings = records.ended("ceilings")
    assert list(ceilings) == ["product", "copy"]
    assert all(r["status"] == "measured" and r["figures"]["ms"] > 0 for r in ceilings.values())
    step = records.ended("step-zero0")["as it is"]
    assert step["status"] == "measured", step
    assert step["figures"]["tokens_per_s"] > 0
    assert all(r["card"] and r["versions"]["torch"] for r in records.all())

    page = write_gpu_report(records, tmp_path)
    assert "| DiaBlo, ZeRO-0 |" in page.read_text()
    losses = records.measured("loss").values()
    assert len({figures["mean_loss"] for figures in losses}) == 1
    assert all(figures["gradient_error"] < 2**-7 for figures in losses)
    (chosen,) = records.measured("chosen").values()
    assert (chosen["micro_batch"], chosen["planned_layers"], chosen["recomputed_layers"]) == (
        4,
        0,
        0,
    )
    assert "| a card of 80 GB | 4 |" in page.read_text()
    assert "## One layer" in page.read_text()
    assert page.with_suffix(".jsonl").is_file()

    before = records.path.read_text()
    _run(tmp_path, "--stage", "ceilings")
    assert records.path.read_text() == before  # everything of it was there


def test_a_step_counts_matrices_once_and_attention_under_the_causal_mask():
    workload = models.WORKLOADS["tiny"]["step"]
    config = workload.config()
    model = models.random_model(config)
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    # Forward: scores and their product with the values, 2 FLOPs each, half of them masked out;
    # backward: twice that.
    attention = 3 * 2 * 2 * workload.length * 256 * 2 / 2
    assert models.flops_per_token(model, config, workload.length) == 4 * matrices + attention


def _crash():
    os.kill(os.getpid(), 9)


def _cases(scale):
    yield Case("killed", _crash)
    yield Case("slow", lambda: time.sleep(60), limit_s=0.5)
    yield Case("wrong", lambda: {}["missing"])
    yield Case("good", lambda: {"value": 1})


def test_neither_a_crash_nor_a_hang_ends_the_rest(tmp_path, monkeypatch):
    monkeypatch.setitem(stages.STAGES, "own", "ceilings.cases")
    monkeypatch.setattr("benchmarks.gpu.ceilings.cases", _cases)
    records = Records(tmp_path / "results.jsonl")
    stages.run_stage("own", records, "tiny", deadline=float("inf"))
    reasons = {name: r.get("reason", "") for name, r in records.ended("own").items()}
    assert list(reasons) == ["killed", "slow", "wrong", "good"]
    assert "ended with -9" in reasons["killed"]
    assert "more than 0.5 s" in reasons["slow"]
    assert "KeyError" in reasons["wrong"]
    assert records.ended("own")["good"]["figures"] == {"value": 1}
    records.forget_failed()
    assert list(records.ended("own")) == ["good"]


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="needs measured cases"):
        write_gpu_report(Records(Path(tmp_path, "none.jsonl")), tmp_path)


def test_half_a_line_at_the_end_is_no_record(tmp_path):
    path = tmp_path / "results.jsonl"
    line = {"stage": "a", "case": "b", "status": "started", "limit_s": 1}
    path.write_text(json.dumps(line) + '\n{"stage": "a"')
    assert Records(path).all() == [line]


@pytest.mark.slow
def test_ending_the_command_ends_its_stage(tmp_path):
    words = ("--scale", "tiny", "--output", str(tmp_path), "--stage", "checks")
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu", *words],
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
    ) as command:
        wait_until((tmp_path / "results.jsonl").is_file, "the first case")
        stages_of_it = psutil.Process(command.pid).children()
        command.terminate()
        command.wait(WAIT_S)
    assert stages_of_it
    assert not psutil.wait_procs(stages_of_it, timeout=10)[1]
