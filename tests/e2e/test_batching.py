"""Every way of batching: resumed, on several ranks, packed."""

from __future__ import annotations

import shutil

import pytest

from diablo_ds.files.layout import ADAPTER_TENSOR_FILE, RunFolder
from tests.e2e.commands import losses
from tests.forked import diablo_ds, ranks

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    "mode",
    [
        "--packing --max-length 64",
        "--micro-batch 0 --micro-batch-tokens 128 --max-length 64 --group-by-length",
        "--stream --heldout-share 0",
    ],
)
def test_every_way_of_batching_resumes_bit_identically_on_two_ranks(mode, options, tmp_path):
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    options = [*options, *mode.split()]
    ranks(*options, "--output", uninterrupted, num_ranks=2)
    shutil.copytree(uninterrupted, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step-000008")
    shutil.rmtree(resumed / "adapter")  # else the run is done
    result = ranks(*options, "--output", resumed, num_ranks=2)
    assert "Resuming after step 4" in result.stderr
    assert losses(resumed) == losses(uninterrupted)
    assert len(losses(uninterrupted)) == 8
    files = [RunFolder(run).adapter / ADAPTER_TENSOR_FILE for run in (resumed, uninterrupted)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("mode", ["--packing", "--stream --heldout-share 0 --max-length 200"])
def test_one_rank_and_two_take_the_same_steps(mode, options, tmp_path):
    options = [*options, *mode.split(), "--dropout", "0"]
    diablo_ds("train", *options, "--output", tmp_path / "one")
    ranks(*options, "--output", tmp_path / "two", num_ranks=2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_packing_does_not_change_the_held_out_loss(options, tmp_path):
    for name, mode in (("plain", []), ("packed", ["--packing"])):
        run = [*options, *mode, "--max-steps", 1, "--output", tmp_path / name]
        diablo_ds("train", *run)
    plain, packed = (losses(tmp_path / name, "heldout_loss")[0] for name in ("plain", "packed"))
    assert packed == pytest.approx(plain, rel=1e-5)
