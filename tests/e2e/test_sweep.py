"""A sweep by the real commands: its runs, its table, and that the same command skips them."""

from __future__ import annotations

import json

import pytest

from diablo_ds.files.layout import SWEEP_FILE
from tests.browser import BROWSER
from tests.e2e.commands import assert_user_error, diablo_ds, losses
from tests.tensorboard_pages import tensorboard

pytestmark = pytest.mark.e2e


def test_a_sweep_trains_every_combination_once(options, tmp_path):
    root = tmp_path / "sweep"
    at = options.index("--num-blocks")
    words = [*options[:at], *options[at + 2 :], "--max-steps", "2", "--gpus-per-node", "1"]
    words += ["--skip-checks", "--output", root]
    done = diablo_ds("launch", "--sweep", "num-blocks=2,4", *words)
    record = json.loads((root / SWEEP_FILE).read_text())
    for run in record["runs"]:
        folder = root / run["name"]
        assert run["status"] == "done"
        assert run["final_heldout_loss"] == losses(folder, "heldout_loss")[2]
        assert list((folder / "tensorboard").glob("events.*"))
    best = min(record["runs"], key=lambda run: run["final_heldout_loss"])
    assert record["best"] == best["name"]
    assert f"{best['name']}/adapter" in done.stderr

    if BROWSER is not None:
        with tensorboard(["--logdir", str(root)]) as board:
            titles = board.titles()
        assert {f"num-blocks={value}/tensorboard" for value in (2, 4)} <= set(titles)
        assert "1 loss/per target token" in titles

    again = diablo_ds("launch", "--sweep", "num-blocks=2,4", *words)
    assert again.stderr.count("is done already") == 2
    assert "deepspeed" not in again.stdout + again.stderr


def test_a_sweep_with_a_block_count_that_does_not_divide_starts_no_run(options, tmp_path):
    at = options.index("--num-blocks")
    words = [*options[:at], *options[at + 2 :], "--output", tmp_path / "sweep"]
    refused = diablo_ds("launch", "--sweep", "num-blocks=4,5", *words, check=False)
    assert_user_error(refused, "run num-blocks=5 of the sweep: num_blocks must divide")
    assert not (tmp_path / "sweep").exists()
