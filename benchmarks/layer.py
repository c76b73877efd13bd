"""One layer, forward and backward, beside what the frozen layer alone costs.

    python -m benchmarks.layer
    python -m benchmarks.layer --tokens 8192 --device cuda

Candidates take turns in each round, so that they see the same machine; the figure is the median
over the rounds of a candidate's time divided by the frozen layer's in the same round. The frozen
layer computes its output and the gradient of its input, which any method has to.
"""

from __future__ import annotations

import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plots import plot_bars
from benchmarks.report import table, write_report
from diablo_ds.adapter.kernels import triton_support
from diablo_ds.adapter.layer import DiaBloLinear
from diablo_ds.adapter.paths import DELTA_PATHS, TRITON_PATHS

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Shape(NamedTuple):
    """A layer and its number of blocks."""

    in_features: int
    out_features: int
    num_blocks: int

    @property
    def lora_rank(self) -> int:
        """The rank at which LoRA trains as many parameters."""
        size = self.in_features * self.out_features // self.num_blocks
        return max(1, round(size / (self.in_features + self.out_features)))

    def __str__(self) -> str:
        """Return in -> out, N."""
        return f"{self.in_features} -> {self.out_features}, N={self.num_blocks}"


SHAPES = (
    Shape(4096, 4096, 64),
    Shape(4096, 11008, 64),
    Shape(11008, 4096, 64),
    Shape(576, 576, 64),
    Shape(576, 1536, 64),
    Shape(1536, 576, 64),
)


class EinsumLinear(nn.Module):
    """The formula written down: the base's output plus an einsum over blocks."""

    def __init__(self, base: nn.Linear, num_blocks: int) -> None:
        super().__init__()
        self.base = base
        shape = (num_blocks, base.in_features // num_blocks, base.out_features // num_blocks)
        self.delta = nn.Parameter(torch.zeros(shape, device=base.weight.device).to(base.weight))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[tokens, in_features]`` to ``[tokens, out_features]``."""
        blocks = x.unflatten(-1, self.delta.shape[:2])
        y = torch.einsum("...ni,nio->...no", blocks, self.delta).flatten(-2)
        return F.linear(x, self.base.weight) + y


def candidates(base: nn.Linear, shape: Shape) -> dict[str, nn.Module]:
    """Return the layers to compare, all with the same frozen weight, as far as they can run."""
    options: dict[str, Any] = {"num_blocks": shape.num_blocks}
    has_kernels = base.weight.is_cuda and triton_support.is_available()
    return {
        "frozen": base,
        **{
            path: DiaBloLinear(base, delta_path=path, **options)
            for path in DELTA_PATHS
            if has_kernels or path not in TRITON_PATHS
        },
        "einsum": EinsumLinear(base, shape.num_blocks),
        **({"PEFT LoRA": _lora_layer(base, shape)} if importlib.util.find_spec("peft") else {}),
    }


def _lora_layer(base: nn.Linear, shape: Shape) -> nn.Module:
    """Return PEFT's LoRA of equal size on the same weight."""
    import peft

    wrapped = nn.Sequential()
    wrapped.add_module("layer", base)
    config = peft.LoraConfig(r=shape.lora_rank, target_modules=["layer"], bias="none")
    layer: nn.Module = peft.inject_adapter_in_model(config, wrapped).get_submodule("layer")
    return layer.to(base.weight.dtype)


def measure(
    shape: Shape, dtype: torch.dtype, tokens: int, device: str, rounds: int
) -> dict[str, Any]:
    """Return milliseconds of the frozen layer, and each candidate's ratio to it."""
    torch.manual_seed(0)
    base = nn.Linear(shape.in_features, shape.out_features, bias=False, device=device, dtype=dtype)
    base.requires_grad_(False)
    x = torch.randn(1, tokens, shape.in_features, device=device, dtype=dtype, requires_grad=True)
    grad = torch.randn(1, tokens, shape.out_features, device=device, dtype=dtype)
    layers = candidates(base, shape)

    def step(layer: nn.Module) -> None:
        x.grad = None
        layer(x).backward(grad)

    times: dict[str, list[float]] = {name: [] for name in layers}
    for index in range(rounds + 2):
        for name, layer in layers.items():
            for parameter in layer.parameters():
                parameter.grad = None
            seconds = timed(partial(step, layer), device)
            if index >= 2:
                times[name].append(seconds)
    ratios = {
        name: statistics.median(t / f for t, f in zip(times[name], times["frozen"], strict=True))
        for name in layers
    }
    return {"frozen_ms": 1e3 * statistics.median(times["frozen"]), "ratios": ratios}


def timed(function: Callable[[], None], device: str) -> float:
    """Return the seconds of a call, until the device is done."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@click.command(context_settings={"show_default": True})
@click.option("--tokens", default=1024, help="Rows of the input.")
@click.option("--rounds", default=15, help="Rounds in which all candidates take turns.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
@click.option("--dtype", "dtypes", multiple=True, default=tuple(DTYPES))
def main(tokens: int, rounds: int, device: str, dtypes: Sequence[str]) -> None:
    """Compare the layer's formulations with the frozen layer and LoRA of equal size."""
    rows, figures = [], []
    for dtype, shape in itertools.product(dtypes, SHAPES):
        found = measure(shape, DTYPES[dtype], tokens, device, rounds)
        figures.append({"dtype": dtype, **shape._asdict(), "lora_rank": shape.lora_rank, **found})
        ratios = found["ratios"]
        rows.append(
            [f"{shape}, {dtype}", f"{found['frozen_ms']:.2f}"]
            + [f"{ratio:.3f}" for name, ratio in ratios.items() if name != "frozen"]
        )
        click.echo(" ".join(rows[-1]), err=True)
    names = [name for name in figures[0]["ratios"] if name != "frozen"]
    text = (
        f"{tokens} tokens, {torch.get_num_threads()} threads, {rounds} rounds. Forward and "
        "backward; figures are times divided by the frozen layer's.\n\n"
        + table(["layer", "frozen, ms", *names], rows)
    )
    path = write_report("layer", "One layer", {"tokens": tokens, "layers": figures}, text, device)
    plot_bars(
        path.with_suffix(".png"),
        [row[0] for row in rows],
        {name: [f["ratios"][name] for f in figures] for name in names},
        "time / frozen layer's",
        baseline=1.0,
    )


if __name__ == "__main__":
    main()
