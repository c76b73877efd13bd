"""A model without its deltas computes what its base does, under ZeRO-3 as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diablo_ds.adapter.attach import diablo_layers, without_deltas
from diablo_ds.zero.loading import load_base
from tests.distributed.runner import run_distributed
from tests.distributed.training import CONFIG, build, micro_batches
from tests.tiny import save_model

pytestmark = pytest.mark.distributed


@torch.no_grad()
def _check(rank: int, model_folder: Path) -> None:
    engine, deltas, _ = build(model_folder, "zero3.json", changes={"stage3_max_reuse_distance": 0})
    (batch, *_) = micro_batches(0, CONFIG, rank, 1)

    def logits(model: Any) -> torch.Tensor:
        return model(**batch.model_inputs()).logits

    from deepspeed.zero import GatheredParameters

    with GatheredParameters(list(deltas.values()), modifier_rank=0):
        for delta in deltas.values():
            torch.nn.init.normal_(delta, std=0.1)
    engine.module.eval()
    base = load_base(model_folder, CONFIG.precision).eval()
    expected, before = logits(base), logits(engine)
    assert not torch.equal(before, expected)
    one, *_ = diablo_layers(engine.module).values()
    one.is_enabled = False
    kept = logits(engine)
    with without_deltas(engine.module):
        assert torch.equal(logits(engine), expected)
    assert torch.equal(logits(engine), kept)  # that layer's switch is as it was
    one.is_enabled = True
    with pytest.raises(RuntimeError, match="inside"), without_deltas(engine.module):
        raise RuntimeError("inside")
    assert torch.equal(logits(engine), before)


def test_without_deltas_a_partitioned_model_is_its_base(tmp_path):
    save_model(tmp_path / "model")
    run_distributed(_check, 1, tmp_path, tmp_path / "model")
