"""Stop requests in the middle of a step and of evaluations: what is finished stays, exactly."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from diablo_ds.checkpoint import list_checkpoints
from tests.cluster.watching import assert_same_run
from tests.e2e.commands import ROOT, deepspeed, environment, free_port, losses
from tests.tiny import write_pairs
from tests.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.e2e


class _Run:
    """A run on two ranks, started as a user does, of which one rank can be told to stop."""

    def __init__(self, options: list[str]) -> None:
        command = ["deepspeed", "--num_accelerators=2", f"--master_port={free_port()}"]
        self.process = subprocess.Popen(
            [*command, "launch/train.py", *options],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        wait_until(lambda: condition() or self.process.poll() is not None, what, poll_s=0.01)

    def stop_one_rank(self) -> str:
        """Send SIGUSR1 to the last rank alone; return what the run printed and its exit code."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        ranks = [p for p in below if p.cmdline()[1:5] == ["-u", "-m", "diablo_ds", "train"]]
        assert len(ranks) == 2, below
        ranks[-1].send_signal(signal.SIGUSR1)
        output, _ = self.process.communicate(timeout=WAIT_S)
        return output


def _points(folder: Path, name: str) -> set[int]:
    return set(losses(folder, name)) if (folder / "metrics.jsonl").exists() else set()


@pytest.mark.parametrize("ds_file", ["zero3.json"])
def test_a_run_stopped_again_and_again_equals_an_undisturbed_one(ds_file, model, tmp_path):
    data, heldout = write_pairs(tmp_path / "a.jsonl", 40), write_pairs(tmp_path / "b.jsonl", 900)
    text = (
        f"--ds_config {ROOT / 'ds_configs' / ds_file} --model {model} --data {data} "
        f"--heldout-data {heldout} --num-blocks 4 --micro-batch 1 --global-batch 400 "
        "--max-steps 3 --save-every 3 --eval-every 2 --learning-rate 0.01 --dropout 0.1"
    )
    options, folder = [*text.split(), "--precision", "bf16"], tmp_path / "run"
    deepspeed(*options, "--output", tmp_path / "whole", num_ranks=2)
    options += ["--output", str(folder)]

    # In the evaluation ahead of the first step: nothing is finished.
    run = _Run(options)
    run.wait_until((folder / "metrics.jsonl").exists, "the first evaluation")
    assert "Stopped before the first step was finished; nothing had to be saved" in (
        run.stop_one_rank()
    )
    assert not list_checkpoints(folder / "checkpoints")
    assert not _points(folder, "heldout_loss")
    # In step 2, of 200 micro batches on each rank.
    run = _Run(options)
    run.wait_until(lambda: 1 in _points(folder, "loss"), "step 1")
    assert "Stopped after step 1 of 3, which is saved" in run.stop_one_rank()
    # In the evaluation after step 2, which is made up for.
    run = _Run(options)
    run.wait_until(lambda: 2 in _points(folder, "loss"), "step 2")
    assert "Stopped after step 2 of 3, which is saved" in run.stop_one_rank()
    assert 2 not in _points(folder, "heldout_loss")
    assert "Done: 3 steps" in deepspeed(*options, num_ranks=2).stdout
    assert_same_run(folder, tmp_path / "whole")
