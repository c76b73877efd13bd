"""A run that starts from a saved adapter: exactly its deltas, and everything else anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from diablo_ds.adapter.storage import load_adapter, load_adapter_config
from diablo_ds.files.layout import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_TENSOR_FILE,
    RunFolder,
    checkpoint_folder,
)
from diablo_ds.training.checkpoint import load_checkpoint
from diablo_ds.training.inspection import describe
from tests import forked
from tests.e2e.commands import ROOT, assert_user_error, losses
from tests.tiny import save_model

pytestmark = pytest.mark.e2e
AUTO = "auto:0.03"


@pytest.fixture(scope="module")
def first(model, data, tmp_path_factory) -> Path:
    """A run of 4 steps with few targets, 32 blocks in some layers and 16 in others."""
    folder = tmp_path_factory.mktemp("first") / "run"
    forked.diablo_ds("train", *_words(model, data), "--num-blocks", AUTO, "--output", folder)
    return folder


def _words(model: Path, data: Path) -> list[str]:
    text = (
        f"--model {model} --data {data} --targets k_proj --targets down_proj --micro-batch 2 "
        "--global-batch 4 --max-steps 4 --eval-every 2 --save-every 2 --learning-rate 0.01 "
        "--precision fp32"
    )
    return text.split()


@pytest.fixture
def second(model, data, first) -> list[str]:
    """The second stage: it takes targets and block counts from the first."""
    text = (
        f"--model {model} --data {data} --init-adapter {first} --micro-batch 2 --global-batch 4 "
        "--max-steps 4 --eval-every 2 --save-every 2 --learning-rate 0.02 "
        "--precision fp32"
    )
    return text.split()


def _assert_equal(deltas: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert deltas.keys() == expected.keys()
    for name, delta in deltas.items():
        assert torch.equal(delta, expected[name]), name


@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "bf16"), (1, "bf16"), (2, "fp32"), (3, "bf16")]
)
def test_it_starts_with_the_deltas_bit_for_bit_at_each_stage(
    stage, precision, second, first, tmp_path
):
    folder = tmp_path / "run"
    ds_config = ROOT / "ds_configs" / f"zero{stage}.json"
    result = forked.ranks(
        *second,
        *("--max-steps", 1, "--precision", precision, "--ds_config", ds_config),
        *("--output", folder),
        num_ranks=2,
    )
    expected = load_adapter(first / "adapter")[0]
    assert len(expected) == 4
    start = load_checkpoint(checkpoint_folder(RunFolder(folder).checkpoints, 0))
    _assert_equal(start.masters, expected)
    assert start.num_optimizer_steps == 0
    assert all(not state["exp_avg"].any() for state in start.state.values())
    ended_with = losses(first, "heldout_loss")[4]
    tolerance = 1e-6 if precision == "fp32" else 1e-2
    assert losses(folder, "heldout_loss")[0] == pytest.approx(ended_with, rel=tolerance)
    assert f"starts from the adapter {first}/adapter" in result.stderr
    parent = json.loads((folder / "run.json").read_text())["parent"]
    assert parent["folder"] == f"{first}/adapter"
    assert len(parent["digest"]) == 64
    assert (parent["step"], parent["heldout_loss"]) == (4, ended_with)
    assert load_adapter_config(folder / "adapter").parent == parent
    assert f"started from {first}/adapter" in describe(folder)


def test_ranks_under_zero_3_equal_one_process_and_resuming_needs_no_initial_adapter(
    second, first, tmp_path
):
    adapter = tmp_path / "adapter"
    shutil.copytree(first / "adapter", adapter)
    second = [*second, "--init-adapter", str(adapter)]
    forked.diablo_ds("train", *second, "--output", tmp_path / "alone")
    expected = load_adapter(tmp_path / "alone" / "adapter")[0]
    folder = tmp_path / "ranks"
    forked.ranks(*second, "--output", folder, num_ranks=2)
    assert losses(folder) == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
    for name, delta in load_adapter(folder / "adapter")[0].items():
        assert_close(delta, expected[name], rtol=1e-4, atol=2e-6)

    # It dies after the first checkpoint; what it started from is gone.
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    shutil.rmtree(adapter)
    shutil.rmtree(folder / "adapter")
    shutil.rmtree(checkpoint_folder(RunFolder(folder).checkpoints, 4))
    result = forked.ranks(*second, "--output", folder, num_ranks=2)
    assert "Resuming after step 2" in result.stderr
    _assert_equal(load_adapter(folder / "adapter")[0], load_adapter(whole / "adapter")[0])
    before, after = (json.loads((path / "run.json").read_text()) for path in (whole, folder))
    (first_start,), (kept_start, second_start) = before.pop("starts"), after.pop("starts")
    assert after == before
    assert kept_start == first_start
    assert (first_start["start_step"], second_start["start_step"]) == (0, 2)
    assert (second_start["world_size"], second_start["changes"]) == (2, [])
    for name in ("model", "data", "ds_config", "commit", "library_versions"):
        assert second_start[name] == first_start[name]
    assert losses(folder) == losses(whole)


def _damaged(first: Path, folder: Path, change: str) -> Path:
    shutil.copytree(first / "adapter", folder)
    path = folder / ADAPTER_TENSOR_FILE
    tensors = load_file(path)
    name = sorted(tensors)[0]
    if change == "NaN":
        tensors[name][0, 0, 0] = torch.nan
    elif change == "missing":
        del tensors[name]
    elif change == "shape":
        tensors = {n: t[:, :-1].contiguous() for n, t in tensors.items()}
    save_file(tensors, path, {"format": "pt"})
    if change == "config":
        (folder / ADAPTER_CONFIG_FILE).unlink()
    return folder


def test_an_adapter_that_does_not_fit_is_refused_by_run_and_dry_run(second, first, model, tmp_path):
    other = save_model(tmp_path / "other", seed=1)
    cases = [
        (["--init-adapter", tmp_path / "nowhere"], "which does not exist"),
        (["--init-adapter", model], "a base model"),
        (["--init-adapter", first / "checkpoints"], "name a checkpoint"),
        (["--init-adapter", _damaged(first, tmp_path / "nan", "NaN")], "NaN"),
        (["--init-adapter", _damaged(first, tmp_path / "few", "missing")], "down_proj"),
        (["--init-adapter", _damaged(first, tmp_path / "thin", "shape")], "in_block=1"),
        (["--init-adapter", _damaged(first, tmp_path / "bare", "config")], ADAPTER_CONFIG_FILE),
        (["--model", other], "give the --model that the adapter was trained on"),
        (["--num-blocks", 16], "leave out --num-blocks"),
        (["--targets", "k_proj"], "leave out --targets and --layers"),
        (["--layers", 0], "leave out --targets and --layers"),
    ]
    folder = tmp_path / "run"
    for number, (options, part) in enumerate(cases):
        words = [*second, *options, "--output", folder]
        dry = forked.diablo_ds("train", "--dry-run", *words, check=False)
        assert_user_error(dry, part)
        if number in (0, 3, 8):
            ranks = forked.ranks(*words, num_ranks=2, check=False)
            assert_user_error(ranks, part)
            assert "Loading" not in ranks.stderr
        assert not folder.exists()
    given = [
        "--num-blocks",
        AUTO,
        "--targets",
        "k_proj",
        "--targets",
        "down_proj",
        "--layers",
        "0-1",
    ]
    for options in (given, ["--memory-budget", 1]):
        accepted = forked.diablo_ds("train", "--dry-run", *second, *options, "--output", folder)
        assert f"starts from the adapter {first}/adapter" in accepted.stdout
        assert "2 x down_proj: 64 -> 32, num_blocks=32" in accepted.stdout
        assert "2 x k_proj: 32 -> 16, num_blocks=16" in accepted.stdout
