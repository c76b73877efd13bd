"""The names that this package uses, with their reasons, and the version they were tested with."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from diablo_ds.errors import UserError

TESTED_VERSION = (0, 19)
"""Major and minor version of DeepSpeed with which everything in `PRIVATE` was tested."""

REFUSED = "a missing name is refused when the engine starts"
SKIPPED = "not done with another version"


class Private(NamedTuple):
    """Names of one kind of DeepSpeed's objects."""

    owner: str
    names: str
    """Separated by blanks."""
    reason: str
    elsewhere: str
    """What happens where the installed version was not tested."""


PRIVATE = (
    Private(
        "parameter under ZeRO-3",
        "ds_status ds_tensor ds_shape ds_numel all_gather partition",
        "to verify where each parameter is, and to gather deltas for their norms",
        REFUSED,
    ),
    Private(
        "parameter and optimizer of ZeRO-3",
        "ds_persist persistent_parameters",
        "to replicate the deltas by name: DeepSpeed's own rule knows sizes only",
        "placed by size: the persistence threshold is raised to the largest delta",
    ),
    Private(
        "optimizer of ZeRO-3",
        "parameter_offload param_coordinator is_invalid_trace _clear_trace_structures "
        "_invalidate_trace",
        "an evaluation must not disturb the recorded order of modules, or from then on base "
        "weights are gathered twice as often",
        f"{SKIPPED}: slower, the same numbers",
    ),
    Private(
        "optimizer of ZeRO-1 and 2",
        "gradient_accumulation_dtype _gradient_reduction_buffer_dtype",
        "gradients stay in fp32 until they are reduced",
        REFUSED,
    ),
    Private(
        "optimizer of ZeRO-1 and 2",
        "check_overflow get_grad_norm_direct _zero_padding dp_process_group cpu_offload",
        "non-finite gradients are found by their norm alone, in one kernel",
        f"{SKIPPED}: slower, the same numbers",
    ),
    Private(
        "optimizer",
        "fp32_groups fp32_partitioned_groups_flat single_partition_of_fp32_groups "
        "_lazy_init_hp_params_optimizer_state loss_scaler",
        "fp32 masters, AdamW's moments and the loss scale are put back from a checkpoint",
        REFUSED,
    ),
    Private(
        "deepspeed.zero.Init",
        "_convert_to_deepspeed_param local_device num_ranks_in_param_group rank_in_group "
        "zero_param_process_group",
        "each rank reads only its own shards of the base",
        "rank 0 reads the base and broadcasts it, parameter by parameter",
    ),
    Private(
        "deepspeed.comm.comm",
        "cdb",
        "the bytes that collectives move are counted, for one step's report",
        REFUSED,
    ),
)
NAMES = frozenset(name for private in PRIVATE for name in private.names.split())


def is_tested() -> bool:
    """Return whether the installed DeepSpeed is of the version that was tested."""
    import deepspeed

    return tuple(int(part) for part in deepspeed.__version__.split(".")[:2]) == TESTED_VERSION


def check_names(ds_engine: Any) -> None:
    """Raise UserError where the installed DeepSpeed lacks a name that nothing replaces."""
    import deepspeed
    from deepspeed.comm import comm

    missing = missing_names(ds_engine) + ([] if hasattr(comm, "cdb") else ["cdb"])
    if missing:
        tested = ".".join(map(str, TESTED_VERSION))
        raise UserError(
            f"DeepSpeed must have the attributes that this program uses; got version "
            f"{deepspeed.__version__} without {', '.join(missing)}; install deepspeed {tested}"
        )


def missing_names(ds_engine: Any) -> list[str]:
    """Return the names without a replacement that a DeepSpeed engine's objects lack."""
    optimizer, stage = ds_engine.optimizer, ds_engine.zero_optimization_stage()
    needed: tuple[str, ...] = ()
    if stage in (1, 2):
        needed = ("gradient_accumulation_dtype", "single_partition_of_fp32_groups")
        needed += ("_gradient_reduction_buffer_dtype", "_lazy_init_hp_params_optimizer_state")
    elif stage == 3:
        needed = ("persistent_parameters", "fp32_partitioned_groups_flat")
    elif not isinstance(optimizer, torch.optim.Optimizer):
        needed = ("fp32_groups",)
    missing = [name for name in needed if not hasattr(optimizer, name)]
    if stage == 3:
        parameter = next(ds_engine.module.parameters())
        of_parameters = ("ds_status", "ds_tensor", "ds_shape", "ds_numel", "all_gather")
        missing += [name for name in of_parameters if not hasattr(parameter, name)]
    return missing
