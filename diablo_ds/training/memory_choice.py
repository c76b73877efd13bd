"""Micro batch and recomputation where they are open: what fits into the GPUs' memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diablo_ds.config.batch_resolution import AS_RECORDED
from diablo_ds.config.batch_sizes import MOST_MICRO_BATCH, micro_batches
from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.model.architecture import decoder_layers
from diablo_ds.model.recomputation import Recomputation, choose_recomputation
from diablo_ds.planning.candidate import Candidate
from diablo_ds.planning.fitting import Fitting, Gpus
from diablo_ds.planning.hardware import GB
from diablo_ds.training.machine import Machine


class PlannedMemory(NamedTuple):
    """What a rank needs by a plan."""

    recomputation: Recomputation
    num_bytes: float


class MemoryChoice(NamedTuple):
    """A run config that fits the GPUs' memory, as far as a plan can tell."""

    run_config: RunConfig
    micro_reason: str = ""
    """Why it has this micro batch; empty where that was not chosen here."""
    recomputation: str = ""
    """What is recomputed and why, as a line; empty where that was not chosen here."""
    warnings: tuple[str, ...] = ()
    to_try: tuple[PlannedMemory, ...] = ()
    """What is recomputed, and then what may be where that does not fit after all, with less and
    less memory; empty where the run had it before."""


def fit_gpus(
    run_config: RunConfig,
    machines: Sequence[Machine],
    shapes: Any,
    *,
    is_size_open: bool,
    recorded: RunConfig | None = None,
    policy: Mapping[str, Any] | None = None,
    num_blocks: dict[str, int] | None = None,
) -> MemoryChoice | None:
    """Choose micro batch and recomputation by a plan, where they are open. All ranks agree.

    Neither changes the global batch or the order of the data. A continued run keeps both where they
    still fit.

    Args:
        run_config: the run config; all else in it is decided.
        machines: what each rank found, in the order of the ranks.
        shapes: the base model on the meta device.
        is_size_open: whether the micro batch may be another one.
        recorded: the run config of the run that is continued.
        policy: the DeepSpeed config file's values.
        num_blocks: block count of each target layer by full module name; those of the run config by
            default.

    Returns:
        None where nothing of it is open, a memory budget decides, or the memory is not known.

    Raises:
        UserError: if a target matches nothing or a block count does not divide a layer.
    """
    is_open = not (
        run_config.recompute is not None
        or run_config.recomputed_layers
        or run_config.keep_attention
        or run_config.reentrant
    )
    gpus = find_gpus(machines)
    if run_config.memory_budget or gpus is None or not (is_size_open or is_open):
        return None
    if not decoder_layers(shapes):
        return None
    given = None if is_open else choose_recomputation(run_config, shapes)
    can_recompute = getattr(shapes, "supports_gradient_checkpointing", False)
    if is_open and not can_recompute:
        given = Recomputation(0)
    some = all(hasattr(layer, "gradient_checkpointing") for layer in decoder_layers(shapes))
    fitting = Fitting(
        run_config, shapes.config, policy or {}, gpus, num_blocks=num_blocks, some_layers=some
    )
    choices = [run_config.micro_batch]
    if is_size_open:
        choices = micro_batches(run_config.global_batch, len(machines))
    try:
        kept = _kept(fitting, choices, given, recorded)
        best = kept or fitting.search(choices, given)
    except UserError:
        raise
    except Exception as error:  # the code of a model may do anything when it is traced
        warning = f"memory cannot be planned for this model ({error!r:.200}); --micro-batch and "
        return MemoryChoice(run_config, warnings=(warning + "--recompute can be given",))
    if best is None:
        return None
    chosen = _with_choice(run_config, best, is_size_open=is_size_open, is_open=is_open)
    is_kept = kept is not None
    most = best.num_layers if given is None else best.recomputation.num_layers
    counts = range(best.recomputation.num_layers + 1, most + 1)
    others = counts if some else counts[-1:]
    return MemoryChoice(
        chosen,
        _micro_reason(chosen, is_kept=is_kept) if is_size_open else "",
        _recomputation_line(best, is_kept=is_kept) if is_open else "",
        () if best.fits else (_too_large(best),),
        () if is_kept else _to_try(fitting, chosen.micro_batch, best, others),
    )


def find_gpus(machines: Sequence[Machine]) -> Gpus | None:
    """Return the GPUs of the ranks, or None where their memory is not known."""
    least = min(machines, key=lambda machine: (machine.device_bytes, machine.device_name))
    if least.device_type == "cpu" or not least.device_bytes:
        return None
    local = {machine.num_local_ranks for machine in machines}
    return Gpus(
        name=least.device_name,
        memory_bytes=least.device_bytes,
        taken_bytes=max(machine.taken_bytes for machine in machines),
        world_size=len(machines),
        ranks_per_node=local.pop() if len(local) == 1 else 1,
    )


def _kept(
    fitting: Fitting,
    choices: Sequence[int],
    given: Recomputation | None,
    recorded: RunConfig | None,
) -> Candidate | None:
    """Return what the run has that is continued, or None where it has none or it does not fit."""
    if recorded is None or (given is None and recorded.recompute is None):
        return None
    size = choices[0] if len(choices) == 1 else recorded.micro_batch
    if size not in choices:
        return None
    candidate = fitting.given(size, given or Recomputation(0))
    if given is None:
        count = (recorded.recomputed_layers or candidate.num_layers) if recorded.recompute else 0
        recomputation = Recomputation(count, recorded.keep_attention)
        if recomputation.num_layers > candidate.num_layers:
            return None
        candidate = fitting.given(size, recomputation)
    return candidate if candidate.fits else None


def _to_try(
    fitting: Fitting, micro_batch: int, best: Candidate, counts: Sequence[int]
) -> tuple[PlannedMemory, ...]:
    """Return what a candidate recomputes, and then the other counts of layers."""
    others = [fitting.given(micro_batch, Recomputation(count)) for count in counts]
    return tuple(PlannedMemory(c.recomputation, float(c.memory.total)) for c in [best, *others])


def with_recomputation(
    run_config: RunConfig, recomputation: Recomputation, num_layers: int
) -> RunConfig:
    """Return a run config that recomputes so many of ``num_layers`` decoder layers."""
    count, keep = recomputation
    return dataclasses.replace(
        run_config,
        recompute=bool(count),
        recomputed_layers=count if count < num_layers else 0,
        keep_attention=bool(count) and keep,
    )


def _with_choice(
    run_config: RunConfig, best: Candidate, *, is_size_open: bool, is_open: bool
) -> RunConfig:
    if is_size_open:
        run_config = dataclasses.replace(run_config, micro_batch=best.run_config.micro_batch)
    if not is_open:
        return run_config
    return with_recomputation(run_config, best.recomputation, best.num_layers)


def _micro_reason(run_config: RunConfig, *, is_kept: bool) -> str:
    if is_kept:
        return f"micro batch {run_config.micro_batch} {AS_RECORDED}"
    return f"of the micro batches up to {MOST_MICRO_BATCH} that divide, the fastest by a plan"


def _recomputation_line(best: Candidate, *, is_kept: bool) -> str:
    count = best.recomputation.num_layers
    if is_kept:
        reason = AS_RECORDED
    elif not best.fits:
        reason = "the least memory"
    else:
        reason = "the fewest that fit" if count else "all of it fits"
    return f"{best.recomputation.text(best.num_layers)}: {reason}, {_planned_text(best)}"


def _planned_text(best: Candidate) -> str:
    return (
        f"planned {best.memory.total / GB:.1f} GB of {best.cluster.memory_bytes / GB:.1f} GB, with "
        f"sequences of {best.run_config.max_length:,} tokens"
    )


def _too_large(best: Candidate) -> str:
    usable = best.cluster.usable_bytes / GB
    return (
        f"by a plan this run needs {best.memory.total / GB:.1f} GB of a GPU, and {usable:.1f} GB "
        "can be had; where it ends for lack of memory use ZeRO stage 3, more ranks or a smaller "
        "max_length"
    )
