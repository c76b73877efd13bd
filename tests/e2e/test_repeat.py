"""A run is repeated from its own run.json, without the files that it was started from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diablo_ds.adapter.storage import load_adapter
from tests import forked
from tests.e2e.commands import assert_user_error, losses

pytestmark = pytest.mark.e2e


def _record(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return values


def test_a_run_repeats_from_its_record_alone(model, data, tmp_path):
    ds_config, settings = tmp_path / "mine.json", tmp_path / "mine.yaml"
    ds_config.write_text(json.dumps({"zero_optimization": {"stage": 2, "overlap_comm": False}}))
    settings.write_text(
        f"model: {model}\n"
        f"data: {data}\n"
        f"ds-config: {ds_config}\n"
        "num_blocks: 4\n"
        "micro-batch: 2\n"
        "gradient-accumulation-steps: 2\n"
        "max-steps: 3\n"
        "learning-rate: 1e-2\n"
        "dropout: 0.1\n"
        "precision: fp32\n"
        "seed: 7  # any\n"
    )
    given = settings.read_bytes()
    first, second = tmp_path / "first", tmp_path / "second"
    forked.ranks("--config", settings, "--output", first)
    ds_config.unlink()
    settings.unlink()
    forked.ranks("--config", first / "run.json", "--output", second)

    assert len(losses(first)) == 3
    assert (first / "given_config.yaml").read_bytes() == given
    assert not list(second.glob("given_config*"))  # a record has no comments
    assert losses(second) == losses(first)
    assert losses(second, "heldout_loss") == losses(first, "heldout_loss")
    deltas = load_adapter(first / "adapter")[0]
    for name, delta in load_adapter(second / "adapter")[0].items():
        assert torch.equal(delta, deltas[name]), name

    old, new = _record(first), _record(second)
    (old_start,), (new_start,) = old.pop("starts"), new.pop("starts")
    assert {**old, "output": ""} == {**new, "output": ""}
    assert (old["micro_batch"], old["global_batch"], old["seed"]) == (2, 8, 7)
    assert old["ds_config"] == {"zero_optimization": {"stage": 2, "overlap_comm": False}}
    for name in ("ds_config", "model", "data", "commit", "version", "world_size", "hosts"):
        assert new_start[name] == old_start[name]
    assert (new_start["world_size"], new_start["gradient_accumulation_steps"]) == (2, 2)
    assert new_start["hosts"][0]["ranks"] == 2
    assert new_start["model"]["path"] == str(model)
    assert len(new_start["model"]["fingerprint"]) == 64
    assert f"--config {first}/run.json" in new_start["command"]

    # Options override the record; without another folder they would change the recorded run.
    shown = forked.ranks(
        "--config", first, "--output", tmp_path / "third", "--seed", 8, "--dry-run"
    )
    assert '"seed": 8' in shown.stdout
    assert '"stage": 2' in shown.stdout
    refused = forked.ranks("--config", first, "--seed", 8, check=False)
    assert_user_error(refused, "seed: 7, now 8")
    first.joinpath("run.json").write_text('{"lerning-rate": 1e-3}')
    refused = forked.ranks("--config", first, check=False)
    assert_user_error(refused, "did you mean learning_rate?")
