"""DeepSpeed's optimizers: dtype and norm of gradients, fp32 masters, moments, loss scale."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diablo_ds.ranks import distributed
from diablo_ds.zero.private.names import is_tested


def is_plain(ds_engine: Any) -> bool:
    """Return whether DeepSpeed left the optimizer unwrapped: stage 0 in fp32."""
    return isinstance(ds_engine.optimizer, torch.optim.Optimizer)


def inner_optimizer(ds_engine: Any) -> torch.optim.Optimizer:
    """Return AdamW itself."""
    optimizer = ds_engine.optimizer
    inner: torch.optim.Optimizer = optimizer if is_plain(ds_engine) else optimizer.optimizer
    return inner


# --- gradients -----------------------------------------------------------------------------------


def keep_fp32_gradients(ds_engine: Any) -> None:
    """Let the optimizer of ZeRO-1 or 2 keep fp32 gradients as they are.

    With `grad_accum_dtype` DeepSpeed would take another optimizer at stage 1, which cannot defer
    the reduction, and at stage 2 still round to the model's dtype ahead of the reduction. At stage
    3 that setting is enough, and stage 0 keeps what it finds.
    """
    if ds_engine.zero_optimization_stage() in (1, 2):
        ds_engine.optimizer.gradient_accumulation_dtype = torch.float32
        ds_engine.optimizer._gradient_reduction_buffer_dtype = lambda: torch.float32


def check_gradients_once(ds_engine: Any) -> None:
    """Let the optimizer of ZeRO-1 or 2 find non-finite gradients by their norm alone.

    DeepSpeed looks for them in each gradient, by a dozen small kernels, and then computes the norm,
    tensor by tensor. The norm of a non-finite gradient is not finite either, and DeepSpeed then
    skips the update as well; and the norms of all tensors take one kernel. With some 160 deltas
    that is most of what an update launches.
    """
    optimizer = ds_engine.optimizer
    if not is_tested() or ds_engine.zero_optimization_stage() not in (1, 2):
        return
    if not optimizer.cpu_offload:
        optimizer.check_overflow = lambda partition_gradients=True: None
        optimizer.get_grad_norm_direct = functools.partial(_gradient_norm, optimizer)


def _gradient_norm(
    optimizer: Any, gradients: Iterable[Tensor], parameters: Iterable[nn.Parameter]
) -> Tensor:
    """Return the norm of a group's gradients over all ranks, ``[]`` in fp32; may not be finite.

    Collective: every rank must call this.

    Args:
        optimizer: DeepSpeed's optimizer of ZeRO-1 or 2.
        gradients: this rank's part of them, with DeepSpeed's padding.
        parameters: theirs; not needed.
    """
    own = [grad for grad in gradients if not getattr(grad, "_zero_padding", False)]
    norms = torch._foreach_norm(own, 2, dtype=torch.float64)
    total = torch.stack(norms).square().sum() if norms else torch.zeros((), dtype=torch.float64)
    squares = total.to(torch.float32).to(optimizer.device)
    torch.distributed.all_reduce(squares, group=optimizer.dp_process_group)
    return squares.sqrt()


# --- state ---------------------------------------------------------------------------------------


def replicated_masters(
    ds_engine: Any, deltas: Mapping[str, nn.Parameter]
) -> dict[str, Tensor] | None:
    """Return the fp32 masters by delta name where each rank holds all of them: stage 0."""
    if ds_engine.zero_optimization_stage():
        return None
    if is_plain(ds_engine):
        return dict(deltas)
    masters = [master for group in ds_engine.optimizer.fp32_groups for master in group]
    return dict(zip(deltas, masters, strict=True))


def flat_masters(ds_engine: Any) -> list[Tensor]:
    """Return this rank's partitions of the fp32 masters, flat, at stages 1 to 3."""
    if ds_engine.zero_optimization_stage() == 3:
        return list(ds_engine.optimizer.fp32_partitioned_groups_flat)
    return list(ds_engine.optimizer.single_partition_of_fp32_groups)


def own_masters(ds_engine: Any, deltas: Mapping[str, nn.Parameter]) -> list[Tensor]:
    """Return the fp32 masters that this rank updates, whole or partitions, at any stage.

    AdamW's own groups do not tell: at stage 3 they are empty between steps.
    """
    replicated = replicated_masters(ds_engine, deltas)
    return flat_masters(ds_engine) if replicated is None else list(replicated.values())


def link_moments(ds_engine: Any) -> None:
    """Let ZeRO-1 or 2 find moments that were created without a step."""
    if ds_engine.zero_optimization_stage() in (1, 2):
        ds_engine.optimizer._lazy_init_hp_params_optimizer_state()


def own_part(ds_engine: Any, delta: Any, value: Tensor) -> Tensor:
    """Return this rank's part of a full tensor as ZeRO-3 partitions the delta's, flat.

    DeepSpeed pads a tensor that the world size does not divide; its own setter of full tensors does
    not.
    """
    size = delta.ds_tensor.ds_numel
    padding = size * ds_engine.dp_world_size - value.numel()
    flat = torch.nn.functional.pad(value.flatten(), (0, padding))
    return flat.narrow(0, size * distributed.rank(), size)


def loss_scaler_numbers(ds_engine: Any) -> dict[str, Any]:
    """Return the attributes of the dynamic loss scaler; changes to the dict act on it."""
    numbers: dict[str, Any] = vars(ds_engine.optimizer.loss_scaler)
    return numbers
