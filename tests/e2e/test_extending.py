"""A finished run is extended: it goes on as if it had been longer from the first step on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from diablo_ds.adapter.attach import attach
from diablo_ds.adapter.storage import load_adapter
from diablo_ds.config.run_files import load_run_config
from diablo_ds.config.starts import load_starts
from diablo_ds.files.layout import RunFolder
from diablo_ds.model.deltas import choose_num_blocks
from diablo_ds.model.loss import causal_lm_loss, count_targets
from diablo_ds.training.preparing import prepare_run
from diablo_ds.zero.loading import load_base
from tests import forked
from tests.e2e.commands import ZERO3, assert_user_error, losses

pytestmark = pytest.mark.e2e


def test_an_extended_run_equals_one_that_was_never_shorter(options, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    options = [*options, "--schedule", "constant"]
    forked.diablo_ds("train", *options, "--max-steps", 12, "--output", whole)
    forked.diablo_ds("train", *options, "--output", folder)
    result = forked.diablo_ds("train", *options, "--max-steps", 12, "--output", folder)
    assert "Changed after step 8: max_steps: 8 -> 12" in result.stderr
    assert "Learning rate: 0.01 in step 8, 0.01 in step 9, 0.01 in step 12" in result.stderr
    assert "Done: 12 steps." in result.stdout
    for name in ("loss", "heldout_loss", "learning_rate"):
        assert losses(folder, name) == losses(whole, name)
    expected = load_adapter(whole / "adapter")[0]
    for name, delta in load_adapter(folder / "adapter")[0].items():
        assert torch.equal(delta, expected[name]), name

    # The same command again, or the one of the shorter run with nothing but the folder.
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    for words in ([*options, "--max-steps", 12], []):
        result = forked.diablo_ds("train", *words, "--output", folder)
        assert f"{folder} is done: 12 steps. The same command with --max-steps" in result.stdout
        assert "Loading" not in result.stderr
    for words, parts in (
        (["--max-steps", 12, "--learning-rate", 0.02], ["learning_rate: 0.01 -> 0.02", "all 12"]),
        ([], ["at least the 12 steps", "max_steps: 12 -> 8"]),
        (["--seed", 1], ["seed: 0, now 1", f"--init-adapter {folder}"]),
    ):
        result = forked.diablo_ds("train", *options, *words, "--output", folder, check=False)
        assert_user_error(result, *parts)
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    starts = load_starts(RunFolder(folder).run_config)
    assert [start["start_step"] for start in starts] == [0, 8]
    assert starts[1]["changes"] == [{"field": "max_steps", "old": 8, "new": 12}]
    card = (folder / "adapter" / "README.md").read_text()
    assert "- after step 8: max_steps: 8 -> 12" in card
    assert json.loads((folder / "progress.json").read_text())["done"] is True


def test_each_step_is_taken_by_the_settings_of_its_start(options, tmp_path):
    folder = tmp_path / "run"
    options = [*options, "--dropout", 0, "--warmup-steps", 0, "--output", folder]
    forked.ranks(*options, "--max-steps", 4, "--schedule", "constant")
    text = "--max-steps 8 --schedule cosine --learning-rate 0.03 --weight-decay 0.1"
    result = forked.ranks(*options, *text.split(), "--profile-steps", "2-3")
    assert "Nothing will be traced: profile_steps=2-3 were taken before" in result.stderr
    rates = [0.01] * 4 + [0.03 * 0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(4, 8)]
    assert f"{rates[3]:.3g} in step 4, {rates[4]:.3g} in step 5, {rates[7]:.3g} in step 8" in (
        result.stderr
    )
    assert list(losses(folder, "learning_rate").values()) == pytest.approx(rates)
    found, expected = load_adapter(folder / "adapter")[0], _train_plain(folder, rates)
    for name, delta in found.items():  # as in the comparison of stages
        assert_close(delta, expected[name], rtol=1e-4, atol=2e-6)


def _train_plain(folder: Path, rates: list[float]) -> dict[str, torch.Tensor]:
    """The reference: no DeepSpeed and no checkpoint, with a rate and a decay for each step."""
    run_config = load_run_config(folder / "run.json")
    prepared = prepare_run(run_config, ZERO3, torch.device("cpu"))
    model = load_base(Path(run_config.model), "fp32").train()
    deltas = attach(model, choose_num_blocks(model, run_config))
    optimizer = torch.optim.AdamW(deltas.values())
    for step, rate in enumerate(rates):
        batches = list(prepared.inputs.train.step(step))
        num_targets = sum(int(count_targets(batch.labels)) for batch in batches)
        for batch in batches:
            logits = model(**batch.model_inputs()).logits
            (causal_lm_loss(logits, batch.labels) / num_targets).backward()
        torch.nn.utils.clip_grad_norm_(deltas.values(), run_config.max_grad_norm)
        optimizer.param_groups[0] |= {"lr": rate, "weight_decay": 0.0 if step < 4 else 0.1}
        optimizer.step()
        optimizer.zero_grad()
    return {name: delta.detach() for name, delta in deltas.items()}
