"""A model without its deltas computes what its base does, under ZeRO-3 as well."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diablo_ds.adapter.attach import diablo_layers, without_deltas
from diablo_ds.model.architecture import build_meta_model
from diablo_ds.model.loss_head import install_loss_head, loss_of
from diablo_ds.zero.loading import load_base
from tests.distributed.runner import run_distributed
from tests.distributed.training import CONFIG, build, learning_rate, micro_batches
from tests.tiny import save_model

pytestmark = pytest.mark.distributed


def _check(rank: int, model_folder: Path) -> None:
    from diablo_ds.training.step import train_step

    engine = build(model_folder, "zero3.json", changes={"stage3_max_reuse_distance": 0})
    batches = micro_batches(0, CONFIG, rank, 1)
    train_step(engine, batches, learning_rate(CONFIG, 0))  # the deltas are no longer zero
    base = load_base(model_folder, CONFIG.precision)
    assert install_loss_head(base, build_meta_model(base.config))

    @torch.no_grad()
    def loss() -> torch.Tensor:
        with engine.evaluating():
            return engine.loss(batches[0])

    with torch.no_grad():
        expected = loss_of(base.eval(), batches[0])
    before = loss()
    assert not torch.equal(before, expected)
    one, *_ = diablo_layers(engine.module).values()
    one.is_enabled = False
    with_others = loss()
    with without_deltas(engine.module):
        assert torch.equal(loss(), expected)
    assert torch.equal(loss(), with_others)  # that layer's switch is as it was
    one.is_enabled = True
    with pytest.raises(RuntimeError, match="inside"), without_deltas(engine.module):
        raise RuntimeError("inside")
    assert torch.equal(loss(), before)
    train_step(engine, batches, learning_rate(CONFIG, 1))


def test_without_deltas_a_partitioned_model_is_its_base(tmp_path):
    save_model(tmp_path / "model")
    run_distributed(_check, 1, tmp_path, tmp_path / "model")
