"""Random models on the device, what a step of them computes, and how a step is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.ranks import peak_memory, reset_peak_memory
from diablo_ds.model.flops import count_flops
from diablo_ds.model.published import find_model_config
from diablo_ds.model.shape import Shape
from diablo_ds.planning.hardware import peak_flops

COMPILED = "compiled layers and loss"
"""The case of all levers but the formulation of the deltas' products."""
WARM_UP_STEPS, STEPS = 5, 10
"""Of a baseline."""
LEVER_WARM_UP_STEPS, LEVER_STEPS = 3, 6
"""Of what differs from it in one point, in the same process."""


@dataclass(frozen=True)
class Workload:
    """A model's shape and the batch that it is trained on."""

    model: str
    shape: Shape
    micro_batch: int = 2
    length: int = 4096

    def config(self) -> Any:
        """Return the Hugging Face config."""
        config, _ = find_model_config(self.model, self.shape, self.length)
        return config


_TINY = Shape(
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=512,
)
WORKLOADS = {
    "full": {
        "step": Workload("llama-3-8b", Shape()),
        "slice": Workload("llama-3-70b", Shape(num_hidden_layers=8)),
    },
    "tiny": {
        "step": Workload("llama-3-8b", _TINY, length=32),
        "slice": Workload("llama-3-70b", _TINY, length=32),
    },
}


def device() -> torch.device:
    """Return the GPU, or the CPU where there is none."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def random_model(config: Any) -> Any:
    """Return a frozen causal LM in bf16 and training mode, with random weights, on the device."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device()):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.config.use_cache = False
    return model.requires_grad_(False).train()


def random_tokens(config: Any, rows: int, length: int) -> torch.Tensor:
    """Return random tokens ``[rows, length]``, int64, on the CPU as a loader brings them."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(config.get_text_config().vocab_size, (rows, length), generator=generator)


def flops_per_token(model: nn.Module, config: Any, length: int) -> float:
    """Return what forward and backward compute for a token of a causal sequence, all targets."""
    return count_flops(model, config).total(tokens=1, targets=1, squared_lengths=length)


def card_peak() -> float | None:
    """Return the card's peak of dense 16-bit products in FLOP/s by its vendor, where known."""
    return peak_flops(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else None


def synchronize() -> None:
    """Wait until the device has done all it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed_steps(
    take_step: Callable[[], object], num_tokens: int, flops_a_token: float, *, lever: bool = False
) -> dict[str, Any]:
    """Return seconds by step after warming up, tokens a second, MFU, and peak memory.

    Args:
        take_step: one optimizer step.
        num_tokens: of a step.
        flops_a_token: see `flops_per_token`.
        lever: whether fewer steps do.
    """
    warm_up, count = (LEVER_WARM_UP_STEPS, LEVER_STEPS) if lever else (WARM_UP_STEPS, STEPS)
    first_s = _seconds(take_step)
    for _ in range(warm_up - 1):
        take_step()
    reset_peak_memory()
    seconds = [_seconds(take_step) for _ in range(count)]
    return step_figures(seconds, num_tokens, flops_a_token) | {"first_step_s": first_s}


def step_figures(seconds: list[float], num_tokens: int, flops_a_token: float) -> dict[str, Any]:
    """Return what measured steps amount to, with the peak memory since it was reset."""
    step_s = statistics.median(seconds)
    rate = num_tokens / step_s
    figures = {
        "step_s": step_s,
        "all_s": seconds,
        "tokens_per_s": rate,
        "memory_bytes": peak_memory(),
        "tflops": rate * flops_a_token / 1e12,
    }
    if torch.cuda.is_available():
        figures["reserved_bytes"] = torch.cuda.max_memory_reserved()
    if peak := card_peak():
        figures["mfu"] = rate * flops_a_token / peak
    return figures


def _seconds(function: Callable[[], object]) -> float:
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start


def profiled_step(take_step: Callable[[], object]) -> dict[str, Any]:
    """Return kernels launched, the share of time the GPU is idle, when, and what takes the time.

    Empty without a GPU.
    """
    if not torch.cuda.is_available():
        return {}
    from torch.autograd import DeviceType  # type: ignore[attr-defined]
    from torch.profiler import ProfilerActivity, profile

    take_step()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        take_step()
        synchronize()
    events = [e for e in profiler.events() if e.device_type == DeviceType.CUDA]
    spans = sorted((e.time_range.start, e.time_range.end, e.name[:60]) for e in events)
    busy, end, before = 0.0, spans[0][0], ""
    gaps = []
    for start, stop, name in spans:
        gaps.append((max(0.0, start - end) / 1e3, before, name))
        busy += max(0.0, stop - max(start, end))
        end, before = max(end, stop), name
    by_name: dict[str, list[float]] = {}
    for event in events:
        by_name.setdefault(event.name[:100], []).append(event.time_range.elapsed_us())
    largest = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:25]
    return {
        "kernels": len(events),
        "idle_share": 1 - busy / (end - spans[0][0]),
        "longest_gaps": sorted(gaps, reverse=True)[:8],
        "kernel_ms": {name: [len(times), sum(times) / 1e3] for name, times in largest},
    }
