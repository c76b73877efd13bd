"""Hand the model to DeepSpeed, and what a step needs of its engine."""

from __future__ import annotations

import contextlib
import copy
import io
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from diablo_ds.config.run import RunConfig
from diablo_ds.model.architecture import decoder_layer_classes
from diablo_ds.ranks import distributed
from diablo_ds.zero.ds_config import zero_stage
from diablo_ds.zero.gradients import check_gradients_once, keep_fp32_gradients
from diablo_ds.zero.joining import import_deepspeed
from diablo_ds.zero.placement import (
    TensorPlacement,
    can_place_by_name,
    choose_placement,
    gather_absent,
    make_persistent,
    verify_placement,
)


def start_engine(
    model: nn.Module,
    deltas: Mapping[str, nn.Parameter],
    config: RunConfig,
    complete: dict[str, Any],
    *,
    by_name: bool | None = None,
) -> tuple[Any, list[TensorPlacement]]:
    """Build the engine, place base and deltas, and verify it.

    Collective: every rank must call this.

    Args:
        model: the model with deltas attached.
        deltas: the deltas by parameter name.
        config: the run config.
        complete: the complete DeepSpeed config.
        by_name: whether to place by name or, the fallback, by size; by default, by name where the
            installed DeepSpeed was tested for it.

    Returns:
        The DeepSpeed engine, and where each parameter lies.
    """
    by_name = can_place_by_name() if by_name is None else by_name
    stage = zero_stage(complete)
    expected = choose_placement(model, deltas, complete, by_name=by_name)
    ds_engine = build_engine(model, deltas, config, complete)
    if stage == 3:
        parameters = dict(ds_engine.module.named_parameters())
        make_persistent(
            ds_engine, [parameters[p.name] for p in expected if not p.sharded], by_name=by_name
        )
    verify_placement(
        ds_engine.module,
        expected,
        stage=stage,
        world_size=distributed.world_size(),
        when="after initialisation",
    )
    return ds_engine, expected


def build_engine(
    model: Any, deltas: Mapping[str, nn.Parameter], run: RunConfig, ds_config: dict[str, Any]
) -> Any:
    """Hand the model to DeepSpeed.

    Collective: every rank must call this.

    Args:
        model: the model with deltas attached; partitioned already under ZeRO-3.
        deltas: the trainable parameters by name.
        run: the run config; gives AdamW's settings.
        ds_config: the complete DeepSpeed config.

    Returns:
        The DeepSpeed engine.
    """
    deepspeed = import_deepspeed()
    if zero_stage(ds_config) == 3:
        # One gather per decoder layer instead of one per weight. It also keeps non-re-entrant
        # checkpointing from gathering a layer's weights once per weight in the recomputation.
        classes = decoder_layer_classes(model)
        if classes:
            deepspeed.utils.set_z3_leaf_modules(model, classes)
    # Without it a first layer's input needs no gradient: re-entrant checkpointing would cut the
    # graph, and a leaf module's backward hook would not fire.
    model.enable_input_require_grads()
    optimizer = torch.optim.AdamW(
        list(deltas.values()),
        lr=run.learning_rate,
        betas=(run.beta1, run.beta2),
        eps=run.epsilon,
        weight_decay=run.weight_decay,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config)
    keep_fp32_gradients(engine)
    if can_place_by_name():  # a DeepSpeed whose optimizer was tested so
        check_gradients_once(engine)
    # At stage 0 in half precision DeepSpeed has taken a step with zero gradients, to allocate
    # AdamW's moments; counted in, it would shift the bias correction of every step.
    optimizer.state.clear()
    return engine


@contextlib.contextmanager
def evaluating(engine: Any) -> Iterator[None]:
    """Put the model into evaluation mode, without touching what ZeRO-3 knows of a training step.

    Collective: every rank must enter it. DeepSpeed 0.19 records the order of modules in a step and
    decides once, for good, which weights to keep from forward to backward. A forward without a
    backward in between makes it record anew and, as the decisions are cached, release all weights
    early ever after: twice the gathers. So evaluation gets a record of its own.
    """
    offload = getattr(engine.optimizer, "parameter_offload", None)
    engine.eval()
    if offload is not None and can_place_by_name():
        of_training = offload.param_coordinator
        if not hasattr(engine, "_evaluation_coordinator"):
            engine._evaluation_coordinator = _without_record(of_training)
        offload.param_coordinator = engine._evaluation_coordinator
    try:
        yield
    finally:
        if offload is not None and can_place_by_name():
            offload.param_coordinator = of_training
        engine.train()


def _without_record(coordinator: Any) -> Any:
    """Return a copy of DeepSpeed's parameter coordinator that has seen no step yet."""
    own = copy.copy(coordinator)
    if own.is_invalid_trace():
        own._clear_trace_structures()
    else:
        own._invalidate_trace()
    return own


def optimizer_step(engine: Any, deltas: Mapping[str, nn.Parameter], learning_rate: float) -> float:
    """Clip the reduced gradients, update the deltas, and drop the gradients.

    Nothing is updated where the norm is not finite.

    Collective: every rank must call this.

    Returns:
        The norm over all delta gradients, before clipping.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    if has_plain_optimizer(engine):  # DeepSpeed reports no norm there
        grads = [delta.grad for delta in deltas.values() if delta.grad is not None]
        grad_norm = float(torch.nn.utils.get_total_norm(grads))
        if math.isfinite(grad_norm):  # elsewhere DeepSpeed skips the update by itself
            engine.step()
        return grad_norm
    engine.step()
    return float(engine.get_global_grad_norm())


def has_plain_optimizer(engine: Any) -> bool:
    """Return whether DeepSpeed left the optimizer unwrapped: stage 0 in fp32."""
    return isinstance(engine.optimizer, torch.optim.Optimizer)


def delta_norms(engine: Any, deltas: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """Return the Frobenius norm of each delta on rank 0; empty on other ranks.

    Collective under ZeRO-3: every rank must call this. Right after an optimizer step the deltas
    are whole on every rank and nothing is communicated; before the first they may have to be
    gathered.
    """
    if engine.zero_optimization_stage() == 3:
        gather_absent(deltas.values())
    if not distributed.is_main_process():
        return {}
    return {name: float(delta.detach().float().norm()) for name, delta in deltas.items()}
