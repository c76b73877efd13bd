"""Hand a model with deltas to DeepSpeed."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diablo_ds.config.run import RunConfig
from diablo_ds.model.architecture import decoder_layer_classes
from diablo_ds.ranks import distributed
from diablo_ds.zero.ds_config import zero_stage
from diablo_ds.zero.engine import Engine
from diablo_ds.zero.joining import import_deepspeed
from diablo_ds.zero.placement import choose_placement
from diablo_ds.zero.private.names import check_names, is_tested
from diablo_ds.zero.private.optimizers import (
    check_gradients_once,
    keep_fp32_gradients,
    own_masters,
)
from diablo_ds.zero.private.parameters import make_persistent


def start_engine(
    model: nn.Module,
    deltas: Mapping[str, nn.Parameter],
    run_config: RunConfig,
    complete: dict[str, Any],
    *,
    by_name: bool | None = None,
) -> Engine:
    """Build the engine, place base and deltas, and verify it.

    Collective: every rank must call this.

    Args:
        model: the model with deltas attached; partitioned already under ZeRO-3.
        deltas: the deltas by parameter name.
        run_config: gives AdamW's settings.
        complete: the complete DeepSpeed config.
        by_name: whether to place by name or, the fallback, by size; by default, by name where the
            installed DeepSpeed was tested for it.

    Raises:
        UserError: if the installed DeepSpeed lacks what is needed of it.
        RuntimeError: if a parameter is not where it has to be.
    """
    by_name = is_tested() if by_name is None else by_name
    placement = choose_placement(model, deltas, complete, by_name=by_name)
    ds_engine = initialize(model, deltas, run_config, complete)
    if zero_stage(complete) == 3:
        parameters = dict(ds_engine.module.named_parameters())
        replicated = [parameters[p.name] for p in placement if not p.sharded]
        make_persistent(ds_engine, replicated, by_name=by_name)
    engine = Engine(ds_engine, deltas, placement)
    engine.verify_placement("after initialisation")
    return engine


def initialize(
    model: Any,
    deltas: Mapping[str, nn.Parameter],
    run_config: RunConfig,
    complete: dict[str, Any],
) -> Any:
    """Return DeepSpeed's engine around a model. Collective: every rank must call this.

    Args:
        model: see `start_engine`.
        deltas: the deltas by parameter name.
        run_config: gives AdamW's settings.
        complete: the complete DeepSpeed config.
    """
    deepspeed = import_deepspeed()
    if zero_stage(complete) == 3:
        # One gather per decoder layer instead of one per weight. It also keeps non-reentrant
        # recomputation from gathering a layer's weights once per weight.
        classes = decoder_layer_classes(model)
        if classes:
            deepspeed.utils.set_z3_leaf_modules(model, classes)
    # Without it a first layer's input needs no gradient: reentrant recomputation would cut the
    # graph, and a leaf module's backward hook would not fire.
    model.enable_input_require_grads()
    optimizer = torch.optim.AdamW(
        list(deltas.values()),
        lr=run_config.learning_rate,
        betas=(run_config.beta1, run_config.beta2),
        eps=run_config.epsilon,
        weight_decay=run_config.weight_decay,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        ds_engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=complete)
    distributed.on_every_rank(lambda: check_names(ds_engine))
    keep_fp32_gradients(ds_engine)
    check_gradients_once(ds_engine)
    # At stage 0 in half precision DeepSpeed has taken a step with zero gradients, to allocate
    # AdamW's moments; counted in, it would shift the bias correction of every step.
    optimizer.state.clear()
    _update_in_one_pass(optimizer, own_masters(ds_engine, deltas))
    return ds_engine


def _update_in_one_pass(optimizer: torch.optim.Optimizer, masters: Iterable[Tensor]) -> None:
    """Let AdamW update what lies on the CPU, offloaded or not, by PyTorch's fused kernel.

    The default there goes over memory a dozen times, and takes seven times as long
    (benchmarks/results has the figures).
    """
    if all(master.device.type == "cpu" for master in masters):
        for group in optimizer.param_groups:
            group["fused"] = True
