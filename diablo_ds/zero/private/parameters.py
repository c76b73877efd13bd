"""Parameters under ZeRO-3: where they lie, who gathers them, and who takes them over."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from diablo_ds.zero.private.names import is_tested


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Return whether ZeRO-3 has taken a parameter over."""
    return hasattr(parameter, "ds_status")


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """Return the shape of a parameter; that of a partitioned one itself is ``[0]``."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def status(parameter: Any) -> str:
    """Return "AVAILABLE" for a parameter that is gathered now, else another name."""
    return str(parameter.ds_status.name)


def shard(parameter: Any) -> Tensor:
    """Return this rank's part of a partitioned parameter, flat, with DeepSpeed's padding."""
    tensor: Tensor = parameter.ds_tensor
    return tensor


def gather_absent(parameters: Iterable[Any]) -> None:
    """Gather the parameters that are partitioned now.

    Collective: every rank must call this with the same parameters.
    """
    absent = [parameter for parameter in parameters if status(parameter) == "NOT_AVAILABLE"]
    if absent:
        absent[0].all_gather(absent)


def make_persistent(ds_engine: Any, parameters: Iterable[nn.Parameter], *, by_name: bool) -> None:
    """Keep parameters unsharded on every rank between steps.

    Collective: every rank must call this with the same parameters, since they join the one
    all-gather that DeepSpeed does after each optimizer step.

    Args:
        ds_engine: DeepSpeed's engine, at stage 3.
        parameters: what has to be replicated.
        by_name: whether to add them to DeepSpeed's list; otherwise its size rule chose them.
    """
    persistent = ds_engine.optimizer.persistent_parameters
    if by_name:
        known = {id(parameter) for parameter in persistent}
        added = [parameter for parameter in parameters if id(parameter) not in known]
        for parameter in added:
            parameter.ds_persist = True  # type: ignore[attr-defined]
        persistent.extend(added)
    gather_absent(persistent)


@contextlib.contextmanager
def evaluation_record(ds_engine: Any, record: Any) -> Iterator[Any]:
    """Let DeepSpeed record the order of modules in an evaluation apart from that in training.

    DeepSpeed 0.19 records the order of modules in a step and decides once, for good, which weights
    to keep from forward to backward. A forward without a backward in between makes it record anew
    and, as the decisions are cached, release all weights early ever after: twice the gathers.

    Args:
        ds_engine: DeepSpeed's engine.
        record: what the last evaluation yielded; None for the first.

    Yields:
        The record, for the next evaluation.
    """
    offload = getattr(ds_engine.optimizer, "parameter_offload", None)
    if offload is None or not is_tested():
        yield None
        return
    training_record = offload.param_coordinator
    if record is None:
        record = copy.copy(training_record)
        if record.is_invalid_trace():
            record._clear_trace_structures()
        else:
            record._invalidate_trace()
    offload.param_coordinator = record
    try:
        yield record
    finally:
        offload.param_coordinator = training_record


class Partitioner:
    """Takes parameters over for ZeRO-3, one by one, without communicating.

    Args:
        ds_config: the complete DeepSpeed config.
    """

    def __init__(self, ds_config: dict[str, Any]) -> None:
        import deepspeed

        self._init: Any = deepspeed.zero.Init(config_dict_or_path=ds_config)
        self.device: torch.device = self._init.local_device

    def own_ranges(self, num_elements: int) -> Iterator[tuple[int, int]]:
        """Yield the elements that this rank keeps of a parameter.

        These are its shard and, with hpZ, its secondary shard inside a node.
        """
        init = self._init
        parts = [(init.dp_world_size, init.rank)]
        if init.zero_param_process_group is not None:
            parts.append((init.num_ranks_in_param_group, init.rank_in_group))
        # DeepSpeed pads a tensor to a multiple of the world size and cuts it into equal parts.
        padded = -(-num_elements // init.dp_world_size) * init.dp_world_size
        done: tuple[int, int] = (0, 0)
        for num_parts, index in reversed(parts):  # the larger one first: it may contain the other
            size = padded // num_parts
            start, stop = index * size, (index + 1) * size
            if not done[0] <= start <= stop <= done[1]:
                yield start, stop
            done = start, stop

    def take_over(self, parameter: nn.Parameter) -> None:
        """Give a full parameter DeepSpeed's attributes and methods."""
        self._init._convert_to_deepspeed_param(parameter)

    def keep_shard(self, parameter: Any) -> None:
        """Keep only this rank's shard of a parameter that was taken over."""
        parameter.partition()
