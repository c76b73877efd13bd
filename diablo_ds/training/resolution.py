"""Open settings become chosen ones: one room for the run, the dry run, and the launchers.

What goes in: the run config with open values, the run config of the run that is continued, the
DeepSpeed config file, the number of ranks, and what each rank found on its machine. What comes out
is a run config without open values, the same on every rank, with a reason for each choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diablo_ds.adapter.kernels.triton_support import check_usable
from diablo_ds.adapter.paths import TRITON_PATHS, resolve_delta_path
from diablo_ds.config.batch_resolution import AS_RECORDED, resolve_batch
from diablo_ds.config.choices import DEFAULT_NUM_BLOCKS
from diablo_ds.config.rate_rule import choose_rate
from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.model.architecture import DTYPES
from diablo_ds.model.base import Apart
from diablo_ds.model.base_dropout import check_layers_kept, choose_dropout, describe_dropout
from diablo_ds.model.compilation import choose_compilation
from diablo_ds.model.deltas import block_widths
from diablo_ds.model.separation import Separation
from diablo_ds.training.attention_choice import resolve_attention, resolve_multiple
from diablo_ds.training.machine import Machine
from diablo_ds.training.memory_choice import PlannedMemory, fit_gpus
from diablo_ds.training.precision_choice import bf16_warnings, choose_precision
from diablo_ds.zero.ds_config import zero_stage


@dataclass(frozen=True)
class Resolution:
    """A run config without open values."""

    run_config: RunConfig
    lines: tuple[str, ...]
    """What was chosen, and why."""
    warnings: tuple[str, ...] = ()
    base_dropout: Mapping[str, float] = field(default_factory=dict)
    """Dropout rates of the base that act while it trains, by where."""
    separation: Separation = field(default_factory=Separation)
    """How its examples are kept apart."""
    to_try: tuple[PlannedMemory, ...] = ()
    """What a trial tells to fit or not, see `diablo_ds.training.memory_trial`; empty for none."""

    def text(self) -> str:
        """Return what was chosen as lines of text."""
        return "\n".join(self.lines)


def resolve_run(
    run_config: RunConfig,
    machines: Sequence[Machine],
    shapes: Any,
    *,
    recorded: RunConfig | None = None,
    policy: Mapping[str, Any] | None = None,
    num_blocks: dict[str, int] | None = None,
    try_apart: Callable[[RunConfig], Apart] | None = None,
) -> Resolution:
    """Choose every setting that a run config leaves open; all ranks agree.

    A pure function, where ``try_apart`` is none that communicates.

    Args:
        run_config: the run config.
        machines: what each rank found, in the order of the ranks.
        shapes: the base model on the meta device.
        recorded: the run config of the run that is continued.
        policy: the DeepSpeed config file's values.
        num_blocks: block count of each target layer by full module name, where the run has them
            from an adapter.
        try_apart: tries how a run config's examples are kept apart, see
            `diablo_ds.model.base.keep_apart`; by default nothing is needed for it.

    Raises:
        UserError: if a setting cannot be used on every rank, with the hosts' names, or changes
            losses of the model.
    """
    batch = resolve_batch(run_config, len(machines), recorded=recorded, policy=policy)
    device_type, stage = _agreed_device_type(machines), zero_stage(policy or {})
    run_config, lines, warnings = _resolve_arithmetic(
        batch.run_config, machines, shapes, recorded, stage
    )
    lines = [*batch.kept, *lines]
    if not run_config.num_blocks and not run_config.init_adapter:
        run_config = dataclasses.replace(run_config, num_blocks=DEFAULT_NUM_BLOCKS)
    if not run_config.learning_rate:
        rate, reason = choose_rate(block_widths(shapes, run_config, num_blocks))
        run_config = dataclasses.replace(run_config, learning_rate=rate)
        lines.append(f"learning rate {rate:g}: {reason}")
    if run_config.data_order == "auto":
        run_config = dataclasses.replace(run_config, data_order="hashed")
    base_dropout, rates = choose_dropout(run_config.base_dropout, shapes)
    if base_dropout and stage == 3 and len(machines) > 1:
        check_layers_kept(shapes)
    run_config = dataclasses.replace(run_config, base_dropout=base_dropout)
    if rates:
        lines.append(_dropout_line(rates, is_kept=bool(base_dropout)))
    attention, reason = resolve_attention(run_config, machines, shapes, device_type, recorded)
    is_attention_open = run_config.attention == "auto"
    run_config, sizes = dataclasses.replace(run_config, attention=attention), batch.sizes
    fit = fit_gpus(
        run_config,
        machines,
        shapes,
        is_size_open=bool(sizes.micro_reason),
        recorded=recorded,
        policy=policy,
        num_blocks=num_blocks,
    )
    if fit is not None:
        run_config, warnings = fit.run_config, [*warnings, *fit.warnings]
        lines = [*filter(None, [fit.recomputation]), *lines]
        sizes = sizes._replace(micro_reason=fit.micro_reason or sizes.micro_reason)
    if sizes.reason:
        lines.insert(0, f"{run_config.batch_equation(len(machines))}: {sizes.reason}")
    apart = Apart(Separation(), attention) if try_apart is None else try_apart(run_config)
    run_config = dataclasses.replace(run_config, attention=apart.attention)
    if is_attention_open:
        lines.append(f"attention {apart.attention}: {apart.reason or reason}")
    given = run_config.pad_to_multiple_of
    multiple, reason = resolve_multiple(given, device_type, recorded, apart.separation)
    run_config = dataclasses.replace(run_config, pad_to_multiple_of=multiple)
    if not given:
        what = f"padding to multiples of {multiple} tokens" if multiple > 1 else "no padding"
        lines.append(f"{what}: {reason}")
    return Resolution(
        run_config,
        tuple(lines),
        tuple(warnings),
        rates if base_dropout else {},
        apart.separation,
        () if fit is None else fit.to_try,
    )


def _resolve_arithmetic(
    run_config: RunConfig,
    machines: Sequence[Machine],
    shapes: Any,
    recorded: RunConfig | None,
    stage: int,
) -> tuple[RunConfig, list[str], list[str]]:
    """Choose precision, delta path and compilation; with lines of why, and warnings."""
    device_type, lines, warnings = machines[0].device_type, [], _thread_warnings(machines)
    if run_config.precision == "auto":
        precision, reason = choose_precision(machines, stage)
        run_config = dataclasses.replace(run_config, precision=precision)
        lines.append(f"precision {precision}: {reason}")
    elif run_config.precision == "bf16":
        warnings += bf16_warnings(machines)
    if run_config.delta_path == "auto":
        path, reason = _choose_delta_path(run_config, device_type, recorded)
        run_config = dataclasses.replace(run_config, delta_path=path)
        lines.append(f"delta path {path}: {reason}")
    _check_delta_path(run_config.delta_path, machines)
    compiling, reason = choose_compilation(run_config.compile, shapes, recorded, device_type)
    if reason:
        lines.append(f"compile {compiling}: {reason}")
    return dataclasses.replace(run_config, compile=compiling), lines, warnings


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


def _agreed_device_type(machines: Sequence[Machine]) -> str:
    for rank, machine in enumerate(machines):
        if machine.device_type != machines[0].device_type:
            raise UserError(
                "device type must be the same on every rank; got "
                f"{machines[0].device_type} on rank 0 ({machines[0].host}) and "
                f"{machine.device_type} on rank {rank} ({machine.host})"
            )
    return machines[0].device_type


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
