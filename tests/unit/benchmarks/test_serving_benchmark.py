"""The benchmark of mixed batches at a tiny size: it measures what it says."""

from __future__ import annotations

import pytest
import torch

from benchmarks import serving
from benchmarks.layer import Shape
from benchmarks.serving_models import METHODS, Settings, lora, ours_by_peft, phases
from diablo_ds.adapter.batched import FORMULATIONS

# transformers and PEFT warn of their own deprecations, PEFT of several adapters in one layer.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
]

SETTINGS = Settings("tiny", 1, 2, "fp32", "cpu", batch=4, prompt=3, num_blocks="16")


def _size(served):
    return sum(
        p.numel() for n, p in served.model.named_parameters() if "lora_" in n or "diablo_" in n
    )


def test_loras_adapters_are_about_as_large_as_ours():
    assert _size(lora(SETTINGS)) == pytest.approx(_size(ours_by_peft(SETTINGS)), rel=0.3)


@pytest.mark.parametrize("method", METHODS)
def test_a_phase_can_be_measured_again_and_again(method):
    both = phases(METHODS[method](SETTINGS), SETTINGS)
    for phase, tokens in (("prefill", 1), ("decode", 1), ("decode", 1)):
        logits = both[phase]().logits
        assert logits.shape[:2] == (SETTINGS.batch, tokens)
        assert logits.isfinite().all()
    assert torch.equal(both["decode"]().logits, logits)


def test_a_layer_is_compared_in_every_formulation():
    _, ratios = serving.measure_layer(Shape(16, 32, 4), 2, 1, "fp32", "cpu", 1, 4)
    assert list(ratios) == [*FORMULATIONS, "PEFT LoRA"]
    assert all(ratio > 0 for ratio in ratios.values())
