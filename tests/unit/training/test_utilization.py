"""MFU: what is counted, of which peak, and where it is shown."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from diablo_ds.config.run import RunConfig
from diablo_ds.data.batches import collate
from diablo_ds.data.labels import IGNORE_LABEL, Example
from diablo_ds.model.architecture import build_meta_model
from diablo_ds.model.flops import Flops, count_flops
from diablo_ds.model.loss_head import install_loss_head
from diablo_ds.planning.hardware import peak_flops
from diablo_ds.training.metrics import Reporter
from diablo_ds.training.step import count
from diablo_ds.training.utilization import Utilization, find_utilization
from tests.tiny import build_model


def test_the_head_counts_per_target_and_attention_by_each_examples_length():
    model = build_model("llama")
    flops = count_flops(model, model.config)
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert flops.per_target == 4 * model.lm_head.weight.numel()
    assert flops.per_token + flops.per_target == 4 * sum(m.weight.numel() for m in linears)
    assert flops.per_squared_length == 6 * model.config.hidden_size * len(model.model.layers)
    assert install_loss_head(model, build_meta_model(model.config))
    assert count_flops(model, model.config) == flops

    examples = [Example([1] * n, [IGNORE_LABEL] + [1] * (n - 1)) for n in (3, 5, 4)]
    packed = collate([examples[:2], examples[2:]], pad_id=0, packing=True)
    padded = collate([[example] for example in examples], pad_id=0)
    for batch in (packed, padded):
        counts = count([batch])
        assert (counts.tokens, counts.targets, counts.squared_lengths) == (12, 9, 50)
        mfu = Utilization(Flops(100.0, 10.0, 1.0), peak=13400.0).mfu(counts, 0.5)
        assert mfu == pytest.approx((1200 + 90 + 50) / (0.5 * 13400))


def test_peaks_are_those_of_the_cards_that_are_known():
    assert peak_flops("NVIDIA H100 80GB HBM3") == peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA GeForce RTX 4090") == 165e12
    for name in ("NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA GeForce GTX 1080"):
        assert peak_flops(name) is None
    model = build_model("llama")
    assert find_utilization(model, torch.device("cpu"), "bf16", 1) is None
    assert find_utilization(model, torch.device("cuda"), "fp32", 1) is None


def test_mfu_is_recorded_and_shown_within_100_columns(tmp_path, caplog):
    steps = 100_000
    reporter = Reporter(tmp_path, RunConfig(), num_steps=steps, start_step=steps - 1)
    values = {"loss": 12.0, "learning_rate": 1e-5, "tokens_per_s": 12_345_678.0, "mfu": 0.4567}
    with caplog.at_level(logging.INFO, logger="diablo_ds"):
        reporter.step(steps, values)
    reporter.close()
    (line,) = [r.getMessage() for r in caplog.records if "tokens/s" in r.getMessage()]
    assert "MFU 45.7%" in line
    assert len(line) <= 100
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["mfu"] == 0.4567
