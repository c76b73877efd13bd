"""The batch sizes of a run: what the user, a DeepSpeed config or the run itself has given, or open.

The first part of `diablo_ds.training.resolution`, and all of it that a launcher needs: no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from diablo_ds.config.batch_sizes import BatchSizes, choose_batch_sizes
from diablo_ds.config.continuation import OPEN_SETTINGS, keep_recorded
from diablo_ds.config.run import RunConfig

AS_RECORDED = "as this run has it"
"""The reason of what a run that continues has already."""


class Batch(NamedTuple):
    """A run config with batch sizes."""

    run_config: RunConfig
    sizes: BatchSizes
    """Each with the reason where it was open."""
    kept: tuple[str, ...] = ()
    """What a continued run has already, a line per setting."""


def resolve_batch(
    run_config: RunConfig,
    world_size: int,
    *,
    recorded: RunConfig | None = None,
    policy: Mapping[str, Any] | None = None,
) -> Batch:
    """Choose the batch sizes that a run config leaves open; also takes what a continued run has.

    Args:
        run_config: the run config.
        world_size: number of ranks.
        recorded: the run config of the run that is continued.
        policy: the DeepSpeed config file's values; sizes that it gives count as given.

    Raises:
        UserError: if what is given does not divide.
    """
    lines: tuple[str, ...] = ()
    if recorded is not None:
        kept = keep_recorded(run_config, recorded)
        lines = tuple(
            f"{_words(name)} {getattr(kept, name)}: {AS_RECORDED}"
            for name in OPEN_SETTINGS
            if getattr(kept, name) != getattr(run_config, name)
        )
        run_config = kept
    run_config = _with_given(run_config, policy or {}, world_size)
    sizes = choose_batch_sizes(
        run_config.micro_batch,
        run_config.global_batch,
        world_size,
        counted_in_tokens=bool(run_config.micro_batch_tokens),
    )
    run_config = dataclasses.replace(
        run_config, micro_batch=sizes.micro_batch, global_batch=sizes.global_batch
    )
    return Batch(run_config, sizes, lines)


def _with_given(run_config: RunConfig, policy: Mapping[str, Any], world_size: int) -> RunConfig:
    """Return the run config with open values as a DeepSpeed config file gives them.

    Wrong types are left for DeepSpeed's own check of the file.
    """
    micro_batch = policy.get("train_micro_batch_size_per_gpu")
    accumulation = policy.get("gradient_accumulation_steps")
    global_batch = policy.get("train_batch_size")
    if _is_size(micro_batch) and _is_size(accumulation) and not _is_size(global_batch):
        global_batch = int(micro_batch or 0) * int(accumulation or 0) * world_size
    sizes = {"micro_batch": micro_batch, "global_batch": global_batch}
    given: dict[str, Any] = {name: value for name, value in sizes.items() if _is_size(value)}
    for precision in ("bf16", "fp16"):
        section = policy.get(precision)
        if isinstance(section, dict) and section.get("enabled") is True:
            given["precision"] = precision
    if run_config.micro_batch_tokens:
        given.pop("micro_batch", None)
    changes = {k: v for k, v in given.items() if getattr(run_config, k) == OPEN_SETTINGS[k]}
    return dataclasses.replace(run_config, **changes)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _words(name: str) -> str:
    return name.replace("_", " ")
