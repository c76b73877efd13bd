"""Stop requests in the middle of a step and of evaluations: what is finished stays, exactly."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from diablo_ds.files.layout import list_checkpoints
from diablo_ds.ranks.free_port import free_port
from tests.cluster.watching import assert_same_run
from tests.e2e.commands import ZERO3, losses
from tests.forked import ASK_VARIABLE, Command, ranks
from tests.tiny import write_pairs
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e


def _stop_one_rank_at(event: Callable[[], object], what: str, options: list[str]) -> str:
    """Send SIGUSR1 to the last rank alone, after an event; return what the run printed."""
    often = {ASK_VARIABLE: "0.05"}
    run = Command("train", *options, num_ranks=2, port=free_port(), variables=often)

    def is_time() -> object:
        assert not run.has_ended(), run.result().stderr
        return event()

    wait_until(is_time, what, poll_s=0.005)
    os.kill(run.processes[-1].pid, signal.SIGUSR1)
    result = run.result(check=False)
    return result.stdout + result.stderr


def _points(folder: Path, name: str) -> set[int]:
    return set(losses(folder, name)) if (folder / "metrics.jsonl").exists() else set()


def test_a_run_stopped_again_and_again_equals_an_undisturbed_one(model, tmp_path):
    data, heldout = write_pairs(tmp_path / "a.jsonl", 40), write_pairs(tmp_path / "b.jsonl", 100)
    text = (
        f"--ds_config {ZERO3} --model {model} --data {data} "
        f"--heldout-data {heldout} --num-blocks 4 --micro-batch 1 --global-batch 80 "
        "--max-steps 3 --save-every 3 --eval-every 2 --learning-rate 0.01 --dropout 0.1"
    )
    options, folder = [*text.split(), "--precision", "bf16"], tmp_path / "run"
    ranks(*options, "--output", tmp_path / "whole")
    options += ["--output", str(folder)]

    # In the evaluation ahead of the first step: nothing is finished.
    exists = (folder / "metrics.jsonl").exists
    text = _stop_one_rank_at(exists, "an evaluation", options)
    assert "Stopped before the first step was finished; nothing had to be saved" in text
    assert not list_checkpoints(folder / "checkpoints")
    # In step 2, of 40 micro batches on each rank; and in the evaluation after it.
    for step in (1, 2):
        text = _stop_one_rank_at(lambda s=step: s in _points(folder, "loss"), "a step", options)
        assert f"Stopped after step {step} of 3, which is saved" in text
    # That evaluation is made up for, also where it was too quick to be stopped.
    metrics = folder / "metrics.jsonl"
    points = [json.loads(line) for line in metrics.read_text().splitlines()]
    kept = [p for p in points if p["step"] < 2 or "heldout_loss" not in p]
    metrics.write_text("".join(json.dumps(point) + "\n" for point in kept))
    assert "Done: 3 steps" in ranks(*options).stdout
    assert_same_run(folder, tmp_path / "whole")
