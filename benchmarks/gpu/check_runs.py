"""Real runs by the real command, resumed, in fp16 and with packed rows."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.models import device
from diablo_ds.adapter.storage import load_adapter
from diablo_ds.ranks.free_port import free_port

ROOT = Path(__file__).parents[2]
_STEPS, _CUT = 12, 6
_LIMIT_S = {"cuda": 90.0, "cpu": 900.0}
_TAIL = 1500
_PACKED_BOUND = 2e-2
"""Nats by which the first held-out loss of packed rows may differ in bf16, where logits are off by
2^-8 of themselves; in fp32 it is 1e-5."""
_SHAPE: Mapping[str, int] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "head_dim": 64,
}


class Ended(NamedTuple):
    """A command that has ended."""

    folder: Path
    code: int
    output: str

    def problem(self) -> str:
        """Return the end of what it printed, where it failed."""
        return "" if self.code == 0 else f"exit code {self.code}: {self.output[-_TAIL:]}"

    def points(self, name: str) -> dict[int, float]:
        """Return one of the run's figures by step."""
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        points = [json.loads(line) for line in lines]
        return {point["step"]: point[name] for point in points if name in point}


class Runs:
    """Runs on a tiny model, in processes of their own beside the other checks."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(3 if _on_gpu() else 1)  # on a CPU each has all cores
        self._half = "bf16" if _on_gpu() else "fp32"

    @cached_property
    def folder(self) -> Path:
        """Where everything lies; holds the model and its data. Not to be made by two threads."""
        from tests.tiny import save_model, write_pairs

        folder = Path(tempfile.mkdtemp(prefix="diablo-checks-"))
        save_model(folder / "model", **_SHAPE)
        write_pairs(folder / "pairs.jsonl", 60)
        return folder

    @cached_property
    def _started(self) -> dict[str, Future[Ended]]:
        _ = self.folder  # from Python 3.12 on, each thread would make one of its own
        whole = self._pool.submit(self._run, "whole", 3, self._half)
        # On a GPU the resumed one has to wait for the whole one alone.
        return {
            "whole": whole,
            "cut": self._pool.submit(self._resume, whole),
            "fp16": self._pool.submit(self._run, "fp16", 2, "fp16" if _on_gpu() else "fp32"),
            "packed": self._pool.submit(
                self._run,
                "packed",
                3,
                self._half,
                *("--packing", "--attention", "varlen" if _on_gpu() else "auto"),
            ),
        }

    def start(self) -> None:
        """Start them all, where there is a device to share and cores to spare."""
        if _on_gpu():
            _ = self._started

    def _ended(self, name: str) -> Ended:
        return self._started[name].result()

    def _resume(self, started: Future[Ended]) -> Ended:
        """Cut a copy of a run back to its first checkpoint, and let it go on."""
        whole, cut = started.result(), self.folder / "cut"
        if whole.code:
            return whole
        shutil.copytree(whole.folder, cut)
        shutil.rmtree(cut / "checkpoints" / f"step-{_STEPS:06d}")
        shutil.rmtree(cut / "adapter")
        shutil.rmtree(cut / ".owner", ignore_errors=True)
        return self._run("cut", 3, self._half)

    def resumed(self) -> dict[str, Any]:
        """Compare a run that was cut back to its first checkpoint and resumed with itself."""
        whole, resumed = self._ended("whole"), self._ended("cut")
        if problem := resumed.problem():
            return {"passed": False, "reason": f"{resumed.folder.name}: {problem}"}
        losses, again = whole.points("loss"), resumed.points("loss")
        adapters = [load_adapter(run.folder / "adapter")[0] for run in (whole, resumed)]
        apart = max(float((adapters[0][n] - adapters[1][n]).abs().max()) for n in adapters[0])
        norm = max(float(delta.norm()) for delta in adapters[0].values())
        is_equal = all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
        differing = [step for step in losses if losses[step] != again.get(step)]
        return {
            "bit_for_bit": is_equal and not differing,
            "largest_difference_of_adapters": apart,
            "largest_norm_of_a_delta": norm,
            "steps_whose_loss_differs": differing,
            "largest_difference_of_losses": max(
                abs(losses[step] - again.get(step, math.inf)) for step in losses
            ),
            "resumed_from": _line(resumed.output, "Resuming after step"),
            "first_loss": losses[1],
            "last_loss": losses[_STEPS],
            # A run that does not place them so stops, at the start or after its first step.
            "base_matrices": _line(whole.output, "base matrices"),
            "deltas": _line(whole.output, "deltas  "),
            "passed": is_equal and not differing and losses[_STEPS] < losses[1],
        }

    def fp16(self) -> dict[str, Any]:
        """Return loss, loss scale and skipped steps of a run in fp16 under ZeRO-2."""
        run = self._ended("fp16")
        if problem := run.problem():
            return {"passed": False, "reason": problem}
        losses, scales = run.points("loss"), run.points("loss_scale")
        checkpoint = run.folder / "checkpoints" / f"step-{_STEPS:06d}" / "state.json"
        taken = int(json.loads(checkpoint.read_text())["num_optimizer_steps"])
        is_finite = all(math.isfinite(loss) for loss in losses.values())
        return {
            "precision": json.loads((run.folder / "run.json").read_text())["precision"],
            "first_loss": losses[1],
            "last_loss": losses[_STEPS],
            "first_loss_scale": scales.get(1, 0.0),
            "last_loss_scale": scales.get(_STEPS, 0.0),
            "skipped_steps": _STEPS - taken,
            "passed": is_finite and taken > 0 and losses[_STEPS] < losses[1],
        }

    def packed(self) -> dict[str, Any]:
        """Compare the first held-out loss of packed rows with that of padded ones."""
        run, plain = self._ended("packed"), self._ended("whole")
        if problem := run.problem() or plain.problem():
            return {"passed": False, "reason": problem}
        attention = json.loads((run.folder / "run.json").read_text())["attention"]
        packed, padded = (r.points("heldout_loss")[0] for r in (run, plain))
        losses = run.points("loss")
        return {
            "attention": attention,
            "packed_heldout_loss": packed,
            "padded_heldout_loss": padded,
            "bound": _PACKED_BOUND,
            "first_loss": losses[1],
            "last_loss": losses[_STEPS],
            "passed": abs(packed - padded) <= _PACKED_BOUND
            and losses[_STEPS] < losses[1]
            and (attention == "varlen") == _on_gpu(),
        }

    def _run(self, name: str, stage: int, precision: str, *more: str) -> Ended:
        """Train in a process of its own, and wait for it."""
        options = {
            "--ds_config": ROOT / "ds_configs" / f"zero{stage}.json",
            "--model": self.folder / "model",
            "--data": self.folder / "pairs.jsonl",
            "--output": self.folder / name,
            "--num-blocks": 16,
            "--max-length": 64,
            "--micro-batch": 2,
            "--global-batch": 4,
            "--max-steps": _STEPS,
            "--save-every": _CUT,
            "--eval-every": _CUT,
            "--learning-rate": 0.003,
            "--precision": precision,
        }
        words = [str(word) for pair in options.items() for word in pair]
        start = [*_launcher(), "--num_gpus=1", f"--master_port={free_port()}", "launch/train.py"]
        process = subprocess.Popen(
            [*start, *words, *more],
            cwd=ROOT,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        limit_s = _LIMIT_S[device().type]
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            process.terminate()
            output, _ = process.communicate()
            output += f"\nended after {limit_s:g} s"
        return Ended(self.folder / name, process.returncode, output)


def _on_gpu() -> bool:
    return device().type == "cuda"


def _launcher() -> list[str]:
    """Return the `deepspeed` command, or what is in it where it is not on the path."""
    beside = Path(sys.executable).with_name("deepspeed")
    if beside.is_file():
        return [str(beside)]
    found = shutil.which("deepspeed")
    return [found] if found else [sys.executable, "-m", "deepspeed.launcher.runner"]


def _environment() -> dict[str, str]:
    """Return this environment without what names a rank, and with this package on the path."""
    dropped = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept |= {"PYTHONPATH": os.pathsep.join(paths)}
    return kept if _on_gpu() else kept | {"DS_ACCELERATOR": "cpu"}


def _line(output: str, part: str) -> str:
    return next((line.strip() for line in output.splitlines() if part in line), "")
