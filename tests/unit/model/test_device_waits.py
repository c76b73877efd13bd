"""A micro step reads nothing from the GPU: the host is free to start what comes next."""

from __future__ import annotations

import pytest
import torch

from diablo_ds.config.run import RunConfig
from diablo_ds.data.batches import collate
from diablo_ds.data.labels import IGNORE_LABEL, Example
from diablo_ds.model.architecture import build_meta_model
from diablo_ds.model.deltas import add_deltas, choose_num_blocks
from diablo_ds.model.loss_head import install_loss_head, loss_of
from tests.tiny import build_model


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="watches for waits on a GPU")
@pytest.mark.parametrize("has_loss_head", [True, False])
def test_a_micro_step_does_not_wait_for_the_device(has_loss_head):
    model = build_model("llama").cuda().requires_grad_(False)
    run_config = RunConfig(num_blocks="4", precision="fp32")
    shapes = build_meta_model(model.config)
    add_deltas(model, choose_num_blocks(shapes, run_config), run_config, shapes)
    if has_loss_head:
        install_loss_head(model, shapes)
    rows = [[Example([1, 2, 3, 4], [IGNORE_LABEL, 2, 3, 4])], [Example([5, 6], [5, 6])]]
    batch = collate(rows, pad_id=0)
    loss_of(model, batch).backward()  # kernels are loaded and memory is taken
    try:
        torch.cuda.set_sync_debug_mode("error")
        loss_of(model, batch).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
