"""Interrupted and resumed equals uninterrupted; damage, divergence and a full disk lose nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from diablo_ds.adapter.storage import load_adapter
from diablo_ds.files.layout import list_checkpoints
from diablo_ds.ranks.free_port import free_port
from diablo_ds.training.checkpoint import verify_checkpoint
from tests import forked
from tests.e2e.commands import (
    ROOT,
    assert_user_error,
    environment,
    losses,
)
from tests.early_adapters import make_early
from tests.overriding import with_last_options
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e
STEP_4, STEP_8 = "step-000004", "step-000008"


def _interrupt_after_step_4(folder: Path) -> None:
    """Leave what a run has on disk when it dies between its checkpoints of steps 4 and 8."""
    shutil.rmtree(folder / "checkpoints" / STEP_8)
    shutil.rmtree(folder / "adapter")
    (folder / "loss.png").unlink()


def _deltas(folder: Path) -> dict[str, torch.Tensor]:
    return load_adapter(folder / "adapter")[0]


def _assert_identical(folder: Path, other: Path) -> None:
    for name in ("loss", "heldout_loss", "tokens_seen", "examples_seen", "epoch"):
        assert losses(folder, name) == losses(other, name)
    deltas = _deltas(other)
    for name, delta in _deltas(folder).items():
        assert torch.equal(delta, deltas[name]), name


@pytest.mark.parametrize(
    ("ds_file", "precision", "is_early"),
    [
        ("zero3.json", "bf16", False),
        ("zero2.json", "bf16", True),
        ("zero0.json", "fp32", False),
    ],
)
def test_resume_is_bit_identical(ds_file, precision, is_early, options, tmp_path):
    def train(folder: Path, *others: str) -> str:
        result = forked.ranks(
            *options,
            *others,
            "--ds_config",
            ROOT / "ds_configs" / ds_file,
            "--output",
            folder,
            "--precision",
            precision,
            num_ranks=2,
        )
        return result.stderr

    train(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    _interrupt_after_step_4(tmp_path / "cut")
    if is_early:  # an early version wrote the checkpoint
        make_early(tmp_path / "cut" / "checkpoints" / STEP_4)
    # A trace of steps changes no number; step 7 is also the one whose traffic is counted.
    said = train(tmp_path / "cut", "--profile-steps", "6-7")
    assert f"Resuming after step 4 from {tmp_path}/cut/checkpoints/{STEP_4}" in said
    assert "Communication per step:\n  " in said
    _assert_identical(tmp_path / "cut", tmp_path / "whole")
    _assert_trace(tmp_path / "cut" / "profile", gathers=ds_file == "zero3.json")


def _assert_trace(folder: Path, *, gathers: bool) -> None:
    """One file with the phases of steps 6 and 7, each where it belongs."""
    (file,) = folder.iterdir()  # of rank 0
    name = rf"{re.escape(socket.gethostname())}_[0-9]+\.[0-9]+\.pt\.trace\.json"
    assert re.fullmatch(name, file.name)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    spans: dict[str, list[tuple[float, float]]] = {}
    for event in json.loads(file.read_text())["traceEvents"]:
        if event.get("cat") == "user_annotation":
            span = (event["ts"], event["ts"] + event["dur"])
            spans.setdefault(event["name"], []).append(span)
    assert {"ProfilerStep#6", "ProfilerStep#7"} == {n for n in spans if n.startswith("Profiler")}
    for step in ("ProfilerStep#6", "ProfilerStep#7"):
        ((start, end),) = spans[step]
        phases = ("forward", "backward", "reduce", "update")
        found = [[s for s in spans[name] if start <= s[0] and s[1] <= end] for name in phases]
        (forward,), (backward,), (reduce,), (update,) = found
        assert forward[1] <= backward[0] <= backward[1] <= reduce[0] <= reduce[1] <= update[0]
        inside = [s for s in spans.get("gather", []) if forward[0] <= s[0] and s[1] <= backward[1]]
        assert bool(inside) == gathers


def test_a_killed_run_goes_on_with_the_same_command(options, tmp_path):
    forked.diablo_ds("train", *options, "--max-steps", 30, "--output", tmp_path / "whole")
    folder = tmp_path / "killed"
    command = ["deepspeed", "--num_accelerators=1", f"--master_port={free_port()}"]
    changed = with_last_options([*options, "--max-steps", 30, "--output", folder])
    command += ["launch/train.py", *changed]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), start_new_session=True, stderr=subprocess.DEVNULL
    )
    wait_until(
        lambda: list_checkpoints(folder / "checkpoints") or process.poll() is not None,
        "a checkpoint",
    )
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    # The rank is in a session of its own; the launcher starts it so.
    subprocess.run(["pkill", "-KILL", "-f", str(folder)], check=False)
    process.wait()
    assert not (folder / "adapter").exists()
    result = forked.diablo_ds("train", *options, "--max-steps", 30, "--output", folder)
    assert "Resuming after step" in result.stderr
    _assert_identical(folder, tmp_path / "whole")


def test_resume_with_other_world_sizes_and_stages(options, tmp_path):
    options = [*options, "--dropout", "0.0"]  # dropout masks depend on the rank

    def train(ds_file: str, num_ranks: int) -> None:
        ds_config = ROOT / "ds_configs" / ds_file
        arguments = [*options, "--ds_config", ds_config, "--output", tmp_path / "run"]
        forked.ranks(*arguments, num_ranks=num_ranks)

    train("zero3.json", 1)
    expected, expected_losses = _deltas(tmp_path / "run"), losses(tmp_path / "run")
    for ds_file, num_ranks in (("zero2.json", 2), ("zero3.json", 2), ("zero0.json", 1)):
        _interrupt_after_step_4(tmp_path / "run")
        train(ds_file, num_ranks)
        # fp32 sums in another order: the same as in the comparison of stages.
        assert losses(tmp_path / "run") == pytest.approx(expected_losses, rel=1e-5)
        for name, delta in _deltas(tmp_path / "run").items():
            assert_close(delta, expected[name], rtol=1e-4, atol=2e-6)


def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(options, tmp_path):
    options = [*options, "--output", tmp_path / "run"]
    forked.diablo_ds("train", *options)
    expected = losses(tmp_path / "run")
    _interrupt_after_step_4(tmp_path / "run")
    forked.diablo_ds("train", *options)
    damaged = tmp_path / "run" / "checkpoints" / STEP_8 / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    shutil.rmtree(tmp_path / "run" / "adapter")
    result = forked.diablo_ds("train", *options)
    assert "Passing over a damaged checkpoint: " in result.stderr
    assert f"{damaged} changed" in result.stderr
    assert "Resuming after step 4" in result.stderr
    assert losses(tmp_path / "run") == expected

    shutil.rmtree(tmp_path / "run" / "adapter")
    for folder in list_checkpoints(tmp_path / "run" / "checkpoints"):
        (folder / "state.json").unlink()
    result = forked.diablo_ds("train", *options, check=False)
    assert_user_error(result, "at least one checkpoint must be intact", "state.json missing")


def test_a_diverging_run_stops_with_step_and_rank_and_keeps_its_checkpoint(options, tmp_path):
    folder = tmp_path / "run"
    diverging = ["--learning-rate", "1e30", "--warmup-steps", "0", "--save-every", "1"]
    result = forked.ranks(*options, *diverging, "--output", folder, num_ranks=2, check=False)
    assert_user_error(result, "loss must be finite; got loss=nan on rank 0 in step 2")
    assert f"the last good checkpoint is {folder}/checkpoints/step-000001" in result.stderr
    (kept,) = list_checkpoints(folder / "checkpoints")
    verify_checkpoint(kept)


def test_a_full_disk_stops_the_run_and_keeps_the_older_checkpoint(options, small_disk):
    folder = small_disk / "run"
    options = [*options, "--output", folder, "--keep-last", "9"]
    first = forked.diablo_ds("train", *options, "--max-steps", 1, check=False)
    assert first.returncode == 0, first.stderr
    shutil.rmtree(folder / "adapter")
    (kept,) = list_checkpoints(folder / "checkpoints")
    (folder / "run.json").write_text(
        (folder / "run.json").read_text().replace('"max_steps": 1,', '"max_steps": 8,')
    )
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(free - 30_000))  # room for metrics, not for more
    result = forked.ranks(*options, num_ranks=2, check=False)
    assert_user_error(result, "No space left on device")
    assert list_checkpoints(folder / "checkpoints") == [kept]
    verify_checkpoint(kept)
    assert not [p for p in (folder / "checkpoints").iterdir() if p != kept]

    (small_disk / "ballast").unlink()
    assert "Done: 8 steps" in forked.diablo_ds("train", *options).stdout
