"""Training without masters against the trainer: in fp32, where there are none, they are equal."""

from __future__ import annotations

import dataclasses

import pytest
from torch.testing import assert_close

from benchmarks.quality.without_masters import EngineWithoutMasters
from diablo_ds.adapter.attach import attach
from diablo_ds.model.deltas import choose_num_blocks
from diablo_ds.model.loss_head import install_loss_head
from diablo_ds.zero.loading import load_base
from tests.distributed.runner import run_distributed
from tests.distributed.training import CONFIG, NUM_STEPS, build, take_step
from tests.tiny import save_model

pytestmark = pytest.mark.distributed


CLIPPED = dataclasses.replace(CONFIG, max_grad_norm=0.05)
"""Below the norm of every gradient, so that clipping acts."""


def compare(rank, folder):
    trainer = build(folder, "zero0.json", CLIPPED)
    model = load_base(folder, "fp32").train()
    deltas = attach(model, choose_num_blocks(model, CLIPPED), delta_path="summed")
    install_loss_head(model, model)
    plain = EngineWithoutMasters(model, deltas, CLIPPED)
    for step in range(NUM_STEPS):
        ours, expected = take_step(plain, step, CLIPPED), take_step(trainer, step, CLIPPED)
        assert ours.grad_norm > CLIPPED.max_grad_norm
        assert ours.loss == pytest.approx(expected.loss, rel=1e-6)
        assert ours.grad_norm == pytest.approx(expected.grad_norm, rel=1e-6)
    for name, delta in trainer.deltas.items():
        assert delta.any()
        assert_close(deltas[name], delta, rtol=1e-5, atol=1e-7)


def test_in_fp32_it_is_the_trainers_step(tmp_path):
    run_distributed(compare, 1, tmp_path, save_model(tmp_path / "model"))
