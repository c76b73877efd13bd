"""No gathered base weight is kept from the forward to the backward."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
from torch import nn

from diablo_ds.adapter.layer import DiaBloLinear
from diablo_ds.model.architecture import BaseSizes
from diablo_ds.zero import joining
from diablo_ds.zero.ds_config import complete_ds_config, load_ds_config
from diablo_ds.zero.gradients import one_gradient_reduction
from diablo_ds.zero.start import initialize
from tests.distributed.runner import run_distributed
from tests.distributed.training import CONFIG, DS_CONFIGS

pytestmark = pytest.mark.distributed
# DeepSpeed keeps up to 1e9 gathered elements from forward to backward; here none.
NO_REUSE = {"stage3_max_reuse_distance": 0, "stage3_max_live_parameters": 0}


class _WideNet(nn.Module):
    """Eight DiaBlo layers of 16 MiB each, and activations of next to nothing."""

    WIDTH, DEPTH = 2048, 8

    def __init__(self) -> None:
        super().__init__()
        width = self.WIDTH
        self.layers = nn.ModuleList(
            DiaBloLinear(nn.Linear(width, width, bias=False), num_blocks=64)
            for _ in range(self.DEPTH)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def enable_input_require_grads(self) -> None:
        """The input gets a gradient already."""


class _Leaking(DiaBloLinear):
    """What must not be done: autograd saves a view of the gathered weight."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input @ self.weight.t() + input @ torch.block_diag(*self.delta)


def _measure_memory(rank: int, output: Path) -> None:
    import deepspeed

    joining.init_process_group()
    path = DS_CONFIGS / "zero3.json"
    complete = complete_ds_config(
        load_ds_config(path),
        CONFIG,
        world_size=2,
        base=BaseSizes(8, 10_000, 1_000, 1_000),
        source="zero3.json",
    )
    complete["zero_optimization"].update(NO_REUSE)
    layer_bytes = 4 * _WideNet.WIDTH**2
    grown = {}
    for kind in (DiaBloLinear, _Leaking):
        with deepspeed.zero.Init(config_dict_or_path=complete):
            net = _WideNet()
        for layer in net.layers:
            layer.__class__ = kind
        deltas = {n: p for n, p in net.named_parameters() if p.requires_grad}
        engine = initialize(net, deltas, CONFIG, complete)
        x = torch.zeros(1, _WideNet.WIDTH, requires_grad=True)
        with one_gradient_reduction(engine, deltas.values()):
            engine.backward(engine(x).sum())  # the first pass records DeepSpeed's trace
        engine.step()
        before = _held_bytes()
        y = engine(x)
        grown[kind.__name__] = (_held_bytes() - before) / layer_bytes
        with one_gradient_reduction(engine, deltas.values()):
            engine.backward(y.sum())
        engine.step()
        engine.destroy()
    # Between forward and backward: at most what is prefetched, against all gathered weights.
    assert grown["DiaBloLinear"] < 2.5, grown
    assert grown["_Leaking"] > _WideNet.DEPTH - 2.5, grown


def _held_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    import psutil

    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else freed memory counts as held
    return int(psutil.Process().memory_info().rss)


def test_no_gathered_weight_outlives_the_forward(tmp_path):
    run_distributed(_measure_memory, 2, tmp_path, tmp_path / "out")
