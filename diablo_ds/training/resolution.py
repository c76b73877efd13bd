"""Open settings become chosen ones: one room for the run, the dry run, and the launchers.

What goes in: the run config with open values, the run config of the run that is continued, the
DeepSpeed config file, the number of ranks, and what each rank found on its machine. What comes out
is a run config without open values, the same on every rank, with a reason for each choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from diablo_ds.adapter.kernels.triton_support import check_usable
from diablo_ds.adapter.paths import TRITON_PATHS, resolve_delta_path
from diablo_ds.config.batch_resolution import AS_RECORDED, Resolution, resolve_batch
from diablo_ds.config.choices import DEFAULT_NUM_BLOCKS
from diablo_ds.config.rate_rule import choose_rate
from diablo_ds.config.run import RunConfig
from diablo_ds.data.batches import PAD_TO_MULTIPLE
from diablo_ds.errors import UserError
from diablo_ds.model.architecture import DTYPES
from diablo_ds.model.attention import choose_attention, takes_lengths
from diablo_ds.model.base_dropout import check_layers_kept, choose_dropout, describe_dropout
from diablo_ds.model.compilation import choose_compilation
from diablo_ds.model.deltas import block_widths
from diablo_ds.model.varlen import VARLEN
from diablo_ds.training.machine import Machine
from diablo_ds.training.memory_choice import fit_gpus
from diablo_ds.zero.ds_config import zero_stage

WARNING_FACTOR = 1.5
"""From this factor on a bf16 that was asked for is warned of: bf16 instructions make it faster."""

CPU_MULTIPLE = 64
"""Tokens to a multiple of which micro batches are padded on a CPU: oneDNN keeps buffers for each
width that it has seen."""


def resolve_run(
    run_config: RunConfig,
    machines: Sequence[Machine],
    shapes: Any,
    *,
    recorded: RunConfig | None = None,
    policy: Mapping[str, Any] | None = None,
    num_blocks: dict[str, int] | None = None,
) -> Resolution:
    """Choose every setting that a run config leaves open. A pure function: all ranks agree.

    Args:
        run_config: the run config.
        machines: what each rank found, in the order of the ranks.
        shapes: the base model on the meta device.
        recorded: the run config of the run that is continued.
        policy: the DeepSpeed config file's values.
        num_blocks: block count of each target layer by full module name, where the run has them
            from an adapter.

    Raises:
        UserError: if a setting cannot be used on every rank; names the hosts.
    """
    batch = resolve_batch(run_config, len(machines), recorded=recorded, policy=policy)
    run_config, lines, warnings = batch.run_config, list(batch.lines), _thread_warnings(machines)
    device_type = _agreed_device_type(machines)
    if run_config.precision == "auto":
        precision, reason = _choose_precision(machines, zero_stage(policy or {}))
        run_config = dataclasses.replace(run_config, precision=precision)
        lines.append(f"precision {precision}: {reason}")
    elif run_config.precision == "bf16":
        warnings += _bf16_warnings(machines)
    if run_config.delta_path == "auto":
        path, reason = _choose_delta_path(run_config, device_type, recorded)
        run_config = dataclasses.replace(run_config, delta_path=path)
        lines.append(f"delta path {path}: {reason}")
    _check_delta_path(run_config.delta_path, machines)
    attention, reason = _resolve_attention(run_config, machines, shapes, device_type, recorded)
    if run_config.attention == "auto":
        lines.append(f"attention {attention}: {reason}")
    run_config = dataclasses.replace(run_config, attention=attention)
    compiling, reason = choose_compilation(run_config.compile, shapes, recorded, device_type)
    if reason:
        lines.append(f"compile {compiling}: {reason}")
    run_config = dataclasses.replace(run_config, compile=compiling)
    if not run_config.num_blocks and not run_config.init_adapter:
        run_config = dataclasses.replace(run_config, num_blocks=DEFAULT_NUM_BLOCKS)
    if not run_config.learning_rate:
        rate, reason = choose_rate(block_widths(shapes, run_config, num_blocks))
        run_config = dataclasses.replace(run_config, learning_rate=rate)
        lines.append(f"learning rate {rate:g}: {reason}")
    if not run_config.pad_to_multiple_of:
        multiple, reason = _choose_multiple(device_type, recorded)
        run_config = dataclasses.replace(run_config, pad_to_multiple_of=multiple)
        lines.append(f"padding to multiples of {multiple} tokens: {reason}")
    if run_config.data_order == "auto":
        run_config = dataclasses.replace(run_config, data_order="hashed")
    base_dropout, rates = choose_dropout(run_config.base_dropout, shapes)
    if base_dropout and zero_stage(policy or {}) == 3 and len(machines) > 1:
        check_layers_kept(shapes)
    run_config = dataclasses.replace(run_config, base_dropout=base_dropout)
    if rates:
        lines.append(_dropout_line(rates, is_kept=bool(base_dropout)))
    acting = rates if base_dropout else {}
    assert batch.sizes is not None
    fit = fit_gpus(
        run_config,
        machines,
        shapes,
        batch.sizes,
        recorded=recorded,
        policy=policy,
        num_blocks=num_blocks,
    )
    if fit is not None:
        run_config, warnings = fit.run_config, [*warnings, *fit.warnings]
        if fit.lines and batch.sizes.micro_reason:  # the micro batch is another by now
            lines.remove(batch.lines[-1])
        lines = [*fit.lines, *lines]
    return Resolution(run_config, tuple(lines), tuple(warnings), acting)


def _dropout_line(rates: Mapping[str, float], *, is_kept: bool) -> str:
    found = f"the base's config has {describe_dropout(rates)}"
    if is_kept:
        return f"base dropout on: {found}; --no-base-dropout switches it off"
    return f"base dropout off, as asked: {found}"


_DELTA_PATH_REASONS = {
    "summed": "in fp32 it equals fused up to rounding, and is faster",
    "prefilled": "on a GPU the fastest that keeps delta and weight apart, as half precision needs",
    "fused": "in half precision and with dropout delta and weight are kept apart",
}


def _choose_delta_path(
    run_config: RunConfig, device_type: str, recorded: RunConfig | None
) -> tuple[str, str]:
    """Return the delta path of all ranks, and why it was chosen."""
    if recorded is not None and recorded.delta_path in _DELTA_PATH_REASONS:
        return recorded.delta_path, AS_RECORDED
    path = resolve_delta_path("auto", DTYPES[run_config.precision], run_config.dropout, device_type)
    return path, _DELTA_PATH_REASONS[path]


def _check_delta_path(path: str, machines: Sequence[Machine]) -> None:
    if path in TRITON_PATHS:
        for rank, machine in enumerate(machines):
            where = f" on rank {rank} ({machine.host})"
            check_usable(path, machine.device_type, has_triton=machine.has_triton, where=where)


def _choose_multiple(device_type: str, recorded: RunConfig | None) -> tuple[int, str]:
    """Return the tokens to a multiple of which micro batches are padded, and why."""
    if recorded is not None:  # an older version recorded none
        return recorded.pad_to_multiple_of or PAD_TO_MULTIPLE, AS_RECORDED
    if device_type == "cpu":
        return CPU_MULTIPLE, "each further width of a micro batch takes memory on a CPU"
    return PAD_TO_MULTIPLE, "matrix units like round sizes"


def _agreed_device_type(machines: Sequence[Machine]) -> str:
    for rank, machine in enumerate(machines):
        if machine.device_type != machines[0].device_type:
            raise UserError(
                "device type must be the same on every rank; got "
                f"{machines[0].device_type} on rank 0 ({machines[0].host}) and "
                f"{machine.device_type} on rank {rank} ({machine.host})"
            )
    return machines[0].device_type


def _choose_precision(machines: Sequence[Machine], stage: int) -> tuple[str, str]:
    """Return a precision for all ranks, and why."""
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


def _bf16_warnings(machines: Sequence[Machine]) -> list[str]:
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


def _thread_warnings(machines: Sequence[Machine]) -> list[str]:
    """Say where ranks on CPUs have unequal numbers of threads; results do not depend on it."""
    least = min(machines, key=lambda machine: machine.num_threads)
    most = max(machines, key=lambda machine: machine.num_threads)
    if least.device_type != "cpu" or least.num_threads == most.num_threads:
        return []
    return [
        f"ranks on {least.host} have {least.num_threads} threads, on {most.host} "
        f"{most.num_threads}: each step waits for the slowest; OMP_NUM_THREADS sets their number"
    ]


def _resolve_attention(
    run_config: RunConfig,
    machines: Sequence[Machine],
    shapes: Any,
    device_type: str,
    recorded: RunConfig | None,
) -> tuple[str, str]:
    """Return the attention of all ranks, and why it was chosen where it was left open."""
    first = machines[0]
    for rank, machine in enumerate(machines):
        if machine.attentions_by_length != first.attentions_by_length:
            raise UserError(
                "attentions of variable length must be the same on every host; got "
                f"{_kernel_names(first)} on rank 0 ({first.host}) and {_kernel_names(machine)} "
                f"on rank {rank} ({machine.host})"
            )

    def choose(setting: str) -> str:
        return choose_attention(
            setting,
            shapes,
            run_config.precision,
            device_type,
            first.attentions_by_length,
            packing=run_config.packing,
        )

    if run_config.attention == "auto" and recorded is not None and recorded.attention != "auto":
        try:
            return choose(recorded.attention), AS_RECORDED
        except ValueError:  # another machine; a continuation may differ in it
            return choose("auto"), f"{recorded.attention}, which this run had, is not to be had"
    name = choose(run_config.attention)
    if name == VARLEN:
        return name, "packed rows need no mask with it, and FlashAttention is not installed"
    if takes_lengths(name):
        return name, "it is installed"
    return name, "transformers' choice for this model"


def _kernel_names(machine: Machine) -> str:
    return ", ".join(machine.attentions_by_length) or "none"


def _hosts(machines: Any) -> str:
    return ", ".join(dict.fromkeys(machine.host for machine in machines))


def _is_one_host(machines: Sequence[Machine]) -> bool:
    return len({machine.host for machine in machines}) == 1
