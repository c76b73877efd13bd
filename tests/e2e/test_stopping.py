"""Stop requests in the middle of a step and of evaluations: what is finished stays, exactly."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from diablo_ds.files.layout import list_checkpoints
from diablo_ds.ranks.free_port import free_port
from tests.cluster.watching import assert_same_run
from tests.e2e.commands import ROOT, ZERO3, environment, losses
from tests.forked import ASK_VARIABLE, Command, ranks
from tests.overriding import with_last_options
from tests.tiny import write_pairs
from tests.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.e2e


class _Launched:
    """A run on two ranks, started as a user does, of which one rank can be told to stop."""

    def __init__(self, options: list[str]) -> None:
        command = ["deepspeed", "--num_accelerators=2", f"--master_port={free_port()}"]
        self.process = subprocess.Popen(
            [*command, "launch/train.py", *with_last_options(options)],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def stop_one_rank_at(self, event: Callable[[], object], what: str) -> str:
        """Send SIGUSR1 to the last rank alone, after an event; return what the run printed."""
        wait_until(lambda: len(self._ranks()) == 2 or self._has_ended(), "the ranks")
        last_rank = self._ranks()[-1]
        wait_until(lambda: event() or self._has_ended(), what, poll_s=0.005)
        last_rank.send_signal(signal.SIGUSR1)
        output, _ = self.process.communicate(timeout=WAIT_S)
        return output

    def _ranks(self) -> list[psutil.Process]:
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if "diablo_ds" in words and "train" in words:
                    found.append(process)
        return found

    def _has_ended(self) -> bool:
        assert self.process.poll() is None, self.process.communicate()[0]
        return False


def _stop_one_rank_at(event: Callable[[], object], what: str, options: list[str]) -> str:
    """The same with ranks that are started without a launcher, and at once."""
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
    text = _Launched(options).stop_one_rank_at(exists, "an evaluation")
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
