"""DeepSpeed config files: read, check, and complete with what the run config owns.

A file of `ds_configs/` owns memory and communication; the run config owns every number of the
training itself. "auto" in a file means: filled in here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import read_ds_config
from diablo_ds.errors import UserError
from diablo_ds.model.architecture import BaseSizes
from diablo_ds.ranks.nodes import UNKNOWN_NODES, NodeSizes
from diablo_ds.zero.auto_sizes import gather_sizes, reduce_bucket
from diablo_ds.zero.ds_sections import (
    MONITORS,
    POLICY_KEYS,
    WITHOUT_EFFECT,
    check_known,
    check_sections,
)

# DeepSpeed knows these, but they would act on the numbers or on files that are ours.
REFUSED_KEYS = frozenset(
    {
        "optimizer",
        "scheduler",
        "amp",
        "torch_autocast",
        "data_types",
        "checkpoint",
        "prescale_gradients",
        "gradient_predivide_factor",
        "gradient_allreduce_op",
        "elasticity",
        "managed_gradient_accumulation",
        "compression_training",
        "data_efficiency",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "fp32_allreduce",
    }
)
NO_PERSISTENCE = 0
"""Persistence threshold that keeps DeepSpeed from choosing by size; we choose by name."""


KEEP_WHOLE_SHARE = 0.2
"""Share of a device's memory up to which the gathered base is kept from forward to backward."""
HPZ_SHARE = 0.5
"""Share of a device's memory that both shards of the base may take."""


def load_ds_config(path: Path) -> dict[str, Any]:
    """Read a DeepSpeed config file and check its keys.

    Raises:
        UserError: if the file is missing or malformed (with line and column), a key is unknown,
            a value is none that DeepSpeed takes, or a section has no effect, writes elsewhere or
            would change numbers that the run config owns.
    """
    values = read_ds_config(path)
    if not isinstance(values, dict):
        raise UserError(f"ds_config must be a JSON object; got {type(values).__name__} in {path}")
    owned = {name.split(".")[0] for name in _owned_values_names()}
    known = POLICY_KEYS | REFUSED_KEYS | owned
    check_known(values, {*known}, "ds_config", path, and_also={*MONITORS, *WITHOUT_EFFECT})
    refused = sorted(REFUSED_KEYS & values.keys())
    if refused:
        key = refused[0]
        raise UserError(
            "ds_config may hold memory and communication policy only; got "
            f"{key}={values[key]!r:.60} in {path}; the run config owns the optimizer, schedule and "
            f"precision: remove {key}"
        )
    check_sections(values, path)
    return values


def zero_stage(ds_config: Mapping[str, Any]) -> int:
    """Return the ZeRO stage of a config; 0 where it names none."""
    return int(ds_config.get("zero_optimization", {}).get("stage", 0))


def offload_device(ds_config: Mapping[str, Any], what: str) -> str:
    """Return "cpu", "nvme" or "none" for ``what``: "param" or "optimizer"."""
    section = ds_config.get("zero_optimization", {}).get(f"offload_{what}") or {}
    return str(section.get("device", "none"))


def complete_ds_config(
    ds_config: Mapping[str, Any],
    run_config: RunConfig,
    *,
    world_size: int,
    base: BaseSizes,
    nodes: NodeSizes = UNKNOWN_NODES,
    source: str,
) -> dict[str, Any]:
    """Return the config that DeepSpeed gets: the file's policy plus the run config's numbers.

    Args:
        ds_config: as read by `load_ds_config`.
        run_config: the run config.
        world_size: number of ranks.
        base: sizes of the base model, for "auto".
        nodes: sizes of a node, for "auto".
        source: the file's name, for errors.

    Raises:
        UserError: if the file sets a value that the run config owns, and differently.
    """
    result = copy.deepcopy(dict(ds_config))
    for name, value in _owned_values(run_config, world_size).items():
        section, _, key = name.rpartition(".")
        target = result.setdefault(section, {}) if section else result
        if key in target and target[key] != "auto" and target[key] != value:
            raise UserError(
                f"ds_config and run config must agree; got {name}={target[key]!r} in {source} and "
                f"{value!r} from the run config; remove it from the file, or change the run config"
            )
        target[key] = value
    # The loop accumulates by itself and reduces gradients once per step, so DeepSpeed sees a step
    # as a single micro step. `training.step` divides the loss once, by the number of targets of the
    # global batch.
    result["gradient_accumulation_steps"] = 1
    micro_batch = (
        run_config.micro_batch or 1
    )  # where it is counted in tokens, DeepSpeed still wants one
    result["train_batch_size"] = micro_batch * world_size
    result["zero_allow_untested_optimizer"] = True  # torch's AdamW
    result["zero_force_ds_cpu_optimizer"] = False
    result.setdefault("steps_per_print", 2**31 - 1)
    # Gradients of the deltas stay fp32 up to the optimizer: see gradients.py.
    result.setdefault("communication_data_type", "fp32")
    zero = result.setdefault("zero_optimization", {})
    if zero_stage(result) == 3:
        result["data_types"] = {"grad_accum_dtype": "fp32"}
        zero.setdefault("stage3_param_persistence_threshold", NO_PERSISTENCE)
    _fill_auto(zero, base, nodes, world_size, source)
    if world_size % (group := zero.get("zero_hpz_partition_size", 1)):
        raise UserError(
            "zero_hpz_partition_size must divide the world size; got "
            f"zero_hpz_partition_size={group} in {source}, world size={world_size}"
        )
    return result


def _owned_values(run_config: RunConfig, world_size: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": run_config.micro_batch or 1,
        "gradient_accumulation_steps": run_config.accumulation_steps(world_size),
        "train_batch_size": run_config.global_batch,
        "gradient_clipping": run_config.max_grad_norm,
        "bf16.enabled": run_config.precision == "bf16",
        "fp16.enabled": run_config.precision == "fp16",
    }


def _owned_values_names() -> list[str]:
    return list(_owned_values(RunConfig(micro_batch=1, global_batch=1), 1))


def _fill_auto(
    zero: dict[str, Any], base: BaseSizes, nodes: NodeSizes, world_size: int, source: str
) -> None:
    sizes = gather_sizes(base)
    live, reuse = sizes.live, sizes.reuse
    if base.total * base.element_bytes <= KEEP_WHOLE_SHARE * nodes.device_bytes:
        # DeepSpeed counts nested modules more than once.
        live, reuse = max(live, 4 * base.total), max(reuse, 4 * base.total)
    fillers = {
        "stage3_prefetch_bucket_size": sizes.prefetch,
        "stage3_max_live_parameters": live,
        "stage3_max_reuse_distance": reuse,
        "zero_hpz_partition_size": hpz_group_size(base, nodes, world_size),
        "reduce_bucket_size": reduce_bucket(base, world_size, nodes.num_ranks),
        "stage3_param_persistence_threshold": NO_PERSISTENCE,
    }
    for key, value in zero.items():
        if value == "auto":
            if key not in fillers:
                raise UserError(
                    f'"auto" must stand for a value this program can fill in; got {key}="auto" in '
                    f"{source}; it can fill {', '.join(fillers)}"
                )
            zero[key] = fillers[key]


def hpz_group_size(base: BaseSizes, nodes: NodeSizes, world_size: int) -> int:
    """Return over how many ranks the base is sharded a second time, 1 for none.

    On several nodes of several ranks each, and where memory allows it, that is a node: a frozen
    base never goes stale, so its gathers then never leave the node, and only deltas do (ZeRO++,
    arXiv 2306.10209).
    """
    group = nodes.num_ranks
    if not 1 < group < world_size or world_size % group:
        return 1
    shards = base.total * base.element_bytes * (1 / world_size + 1 / group)
    return group if shards <= HPZ_SHARE * nodes.device_bytes else 1
