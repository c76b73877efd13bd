"""The best checkpoint and patience: a run that was interrupted ends like one that was not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from diablo_ds.adapter.storage import load_adapter, load_adapter_config
from diablo_ds.files.layout import RunFolder, checkpoint_folder, list_checkpoints, step_of
from diablo_ds.launcher.status import describe_status
from diablo_ds.training.checkpoint import load_checkpoint
from diablo_ds.training.inspection import describe
from tests import forked
from tests.e2e.commands import assert_user_error, losses

pytestmark = pytest.mark.e2e
BEST, LAST = 16, 24
"""The held-out loss falls until step 16 and then rises; with a patience of 2 it ends at 24."""


@pytest.fixture
def unsteady(options) -> list[str]:
    changes = (
        "--max-steps 40 --eval-every 4 --save-every 10 --keep-last 9 --learning-rate 0.05 "
        "--schedule constant --warmup-steps 0 --keep-best --patience 2"
    )
    return [*options, *changes.split()]


def _steps(folder: Path) -> list[int]:
    return sorted(map(step_of, list_checkpoints(RunFolder(folder).checkpoints)))


def _cut(whole: Path, folder: Path, after: int, *, without_evaluation: bool = False) -> None:
    """Leave what a run has on disk when it dies after the checkpoint of a step."""
    shutil.copytree(whole, folder)
    files = RunFolder(folder)
    shutil.rmtree(files.adapter)
    files.write_progress(40, 0, done=False)
    for checkpoint in list_checkpoints(files.checkpoints):
        if step_of(checkpoint) > after:
            shutil.rmtree(checkpoint)
    if without_evaluation:
        lines = files.metrics.read_text().splitlines(keepends=True)
        kept = [line for line in lines if not line.startswith(f'{{"step": {after}, "heldout')]
        assert len(kept) == len(lines) - 1
        files.metrics.write_text("".join(kept))


def _assert_same_end(folder: Path, whole: Path) -> None:
    for name in ("loss", "heldout_loss", "evals_without_better", "stopped_early"):
        assert losses(folder, name) == losses(whole, name)
    expected = load_adapter(whole / "adapter")[0]
    for name, delta in load_adapter(folder / "adapter")[0].items():
        assert torch.equal(delta, expected[name]), name


def test_the_best_is_kept_patience_ends_the_run_and_resuming_changes_neither(unsteady, tmp_path):
    whole = tmp_path / "whole"
    result = forked.diablo_ds("train", *unsteady, "--output", whole)
    heldout = losses(whole, "heldout_loss")
    assert min(heldout, key=heldout.__getitem__) == BEST
    assert max(losses(whole)) == max(heldout) == LAST
    assert f"Done: {LAST} steps." in result.stdout
    assert f"step {BEST} with {heldout[BEST]:.4f}" in result.stdout
    early = f"after step {LAST} of 40: 2 evaluations in a row brought no lower held-out loss"
    assert f"Stopped early, {early}" in result.stdout
    assert losses(whole, "evals_without_better")[LAST] == 2
    assert losses(whole, "stopped_early") == {LAST: 1}
    assert f"done, stopped early {early}" in describe_status(whole)
    assert f"lowest {heldout[BEST]:.4f} at step {BEST}" in describe_status(whole)
    assert early in describe(whole)
    adapter = load_adapter_config(whole / "adapter")
    assert (adapter.step, adapter.heldout_loss) == (BEST, heldout[BEST])

    # A better evaluation writes a checkpoint of its own; the last step has one as well.
    assert _steps(whole) == [0, 4, 8, 10, 12, BEST, 20, LAST]
    best = load_checkpoint(checkpoint_folder(RunFolder(whole).checkpoints, BEST))
    for name, delta in load_adapter(whole / "adapter")[0].items():
        assert torch.equal(delta, best.masters[name]), name

    before = (whole / "metrics.jsonl").read_bytes()
    result = forked.diablo_ds("train", *unsteady, "--output", whole)
    assert f"is done, stopped early {early}" in result.stdout
    assert "with --patience above 2, or 0, extends it" in result.stdout
    assert "Loading" not in result.stderr
    assert (whole / "metrics.jsonl").read_bytes() == before

    for after, without_evaluation in ((10, False), (BEST, False), (20, False), (20, True)):
        folder = tmp_path / f"cut-{after}-{without_evaluation}"
        _cut(whole, folder, after, without_evaluation=without_evaluation)
        forked.diablo_ds("train", *unsteady, "--output", folder)
        _assert_same_end(folder, whole)
        assert _steps(folder) == _steps(whole)


def test_pruning_spares_the_best_on_all_ranks_and_a_lost_one_is_replaced(unsteady, tmp_path):
    options = [*unsteady, "--keep-last", 1, "--output", tmp_path / "run"]
    forked.ranks(*options, num_ranks=2)
    last, best = _steps(tmp_path / "run")[-1], _steps(tmp_path / "run")[0]
    heldout = losses(tmp_path / "run", "heldout_loss")
    assert best == min(heldout, key=heldout.__getitem__) < last == max(heldout)
    assert _steps(tmp_path / "run") == [best, last]

    # With more steps the run continues; the lost best one is said and another takes its place.
    shutil.rmtree(checkpoint_folder(RunFolder(tmp_path / "run").checkpoints, best))
    result = forked.ranks(*options, "--patience", 0, "--max-steps", 60, num_ranks=2)
    assert "The best checkpoint is lost" in result.stderr
    heldout = losses(tmp_path / "run", "heldout_loss")
    later = {step: loss for step, loss in heldout.items() if step > last}
    best = min(later, key=later.__getitem__)
    assert set(_steps(tmp_path / "run")) == {best, 60}
    assert json.loads((tmp_path / "run" / "progress.json").read_text())["done"] is True
    assert f"step {best} with {later[best]:.4f}" in result.stdout
    assert not losses(tmp_path / "run", "stopped_early")


def test_a_last_step_that_is_the_best_leaves_no_former_best(options, tmp_path):
    """Nor where the process ended before it could be removed, or before a checkpoint knew of it."""
    few = [*options, "--keep-best", "--keep-last", 1]
    forked.diablo_ds("train", *few, "--output", tmp_path / "whole")
    heldout = losses(tmp_path / "whole", "heldout_loss")
    assert min(heldout, key=heldout.__getitem__) == 8  # after which no step is taken
    folder = tmp_path / "ended"
    forked.diablo_ds("train", *options, "--keep-last", 9, "--output", folder)
    checkpoints = RunFolder(folder).checkpoints
    former, last = checkpoint_folder(checkpoints, 4), checkpoint_folder(checkpoints, 8)
    assert load_checkpoint(last).evaluations.best == (4, heldout[4])
    shutil.copytree(former, tmp_path / "former")
    for is_removed in (False, True):
        if is_removed:
            shutil.copytree(tmp_path / "former", former)
        assert former.is_dir()
        RunFolder(folder).write_progress(8, 8, done=False)
        forked.diablo_ds("train", *few, "--output", folder)
        assert _steps(folder) == _steps(tmp_path / "whole") == [8]
        assert load_checkpoint(last).evaluations.best == (8, heldout[8])
        assert load_adapter_config(last).heldout_loss == heldout[8]


def test_settings_without_effect_are_refused_before_the_model_is_loaded(unsteady, tmp_path):
    output = ["--output", tmp_path / "run"]
    for options, parts in (
        (["--heldout-share", 0], ("keep_best needs held-out data", "--heldout-share above 0")),
        (["--patience", 10], ("patience=10 with an evaluation every 4", "patience of at most 9")),
    ):
        result = forked.ranks(*unsteady, *options, *output, num_ranks=2, check=False)
        assert_user_error(result, *parts)
        assert "Loading" not in result.stderr
        assert_user_error(
            forked.diablo_ds("train", "--dry-run", *unsteady, *options, *output, check=False),
            *parts,
        )
    assert not (tmp_path / "run").exists()
