"""The precision of a run, where it is open: what every rank's machine computes fast."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from diablo_ds.training.machine import Machine

WARNING_FACTOR = 1.5
"""From this factor on a bf16 that was asked for is warned of: bf16 instructions make it faster."""


def choose_precision(machines: Sequence[Machine], stage: int) -> tuple[str, str]:
    """Return a precision for all ranks, and why; fp16 at ZeRO stages that have it."""
    if machines[0].device_type == "cpu":
        slowest = max(machines, key=_bf16_factor)
        factor = _bf16_factor(slowest)
        where = "this CPU" if _is_one_host(machines) else f"the CPU of {slowest.host}"
        measured = f"products of the model's width take {factor:.2g} times as long as in fp32"
        return ("bf16" if factor <= 1 else "fp32"), f"in bf16 {measured} on {where}"
    without = _hosts(machine for machine in machines if not machine.has_bf16)
    if not without:
        return "bf16", "the GPU has it" if len(machines) == 1 else "all GPUs have it"
    if stage == 0:
        return "fp32", f"no bf16 on the GPU of {without}, and fp16 needs ZeRO stage 1, 2 or 3"
    return "fp16", f"no bf16 on the GPU of {without}"


def _bf16_factor(machine: Machine) -> float:
    return machine.bf16_factor or 0.0


def bf16_warnings(machines: Sequence[Machine]) -> list[str]:
    """Say where the bf16 that was asked for is slow."""
    if machines[0].device_type != "cpu":
        without = _hosts(machine for machine in machines if not machine.has_bf16)
        if not without:
            return []
        return [f"bf16 is slow on the GPU of {without}, which has no bf16; use --precision fp16"]
    slowest = max(machines, key=_bf16_factor)
    if _bf16_factor(slowest) < WARNING_FACTOR:
        return []
    where = "this CPU" if _is_one_host(machines) else f"the CPU of {slowest.host}"
    return [
        f"bf16 is slow on {where}: products of the model's width take {slowest.bf16_factor:.2g} "
        "times as long as in fp32; use --precision fp32"
    ]


def _hosts(machines: Iterable[Machine]) -> str:
    return ", ".join(dict.fromkeys(machine.host for machine in machines))


def _is_one_host(machines: Sequence[Machine]) -> bool:
    return len({machine.host for machine in machines}) == 1
