"""Deltas on a base model, with weights or on the meta device; shared by run, dry run and plan.

First which layers get a delta, then the model as a step sees it: deltas attached, decoder layers
recomputed, the loss computed in the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from diablo_ds.adapter.attach import attach
from diablo_ds.adapter.paths import resolve_delta_path
from diablo_ds.adapter.targets import resolve_num_blocks, select_targets
from diablo_ds.config.choices import DEFAULT_NUM_BLOCKS
from diablo_ds.config.run import RunConfig
from diablo_ds.model.architecture import DTYPES, text_decoder_name
from diablo_ds.model.base_dropout import switch_off_dropout
from diablo_ds.model.loss_head import install_loss_head
from diablo_ds.model.recomputation import Recomputation, recompute_layers

NO_RECOMPUTATION = Recomputation(0)


@dataclass(frozen=True)
class ModelWithDeltas:
    """A base model with deltas, not yet handed to DeepSpeed."""

    model: Any
    deltas: dict[str, nn.Parameter]
    """By parameter name, ``[num_blocks, in_block, out_block]`` each."""
    has_loss_head: bool
    """Whether the head computes the loss chunk by chunk."""


def choose_num_blocks(model: Any, run_config: RunConfig) -> dict[str, int]:
    """Return the target layers by full module name, with the block count of each.

    Args:
        model: the base model; may be on the meta device.
        run_config: names targets, layers and block count.

    Raises:
        UserError: if a target matches nothing or a block count does not divide a layer.
    """
    targets = select_targets(
        model,
        run_config.targets,
        layers=run_config.layers,
        model_type=model.config.get_text_config().model_type,
        within=text_decoder_name(model),
    )
    return resolve_num_blocks(targets, run_config.num_blocks or DEFAULT_NUM_BLOCKS)


def block_widths(
    model: Any, run_config: RunConfig, num_blocks: Mapping[str, int] | None = None
) -> list[int]:
    """Return the inputs of a block of each target layer.

    Args:
        model: the base model; may be on the meta device.
        run_config: names targets, layers and block count.
        num_blocks: target layers by full module name; those of the run config by default.

    Raises:
        UserError: see `choose_num_blocks`.
    """
    chosen = choose_num_blocks(model, run_config) if num_blocks is None else num_blocks
    modules = dict(model.named_modules())
    return [modules[name].in_features // count for name, count in chosen.items()]


def add_deltas(
    model: Any,
    num_blocks: dict[str, int],
    run_config: RunConfig,
    shapes: Any,
    *,
    recomputation: Recomputation = NO_RECOMPUTATION,
    device: torch.device | None = None,
) -> ModelWithDeltas:
    """Attach deltas to a base model, in place, and prepare it for training steps.

    Args:
        model: the base model; its parameters may be partitioned by ZeRO-3, or on the meta device.
        num_blocks: see `choose_num_blocks`.
        run_config: the run config; its precision is not open any more.
        shapes: the base model on the meta device; may be ``model`` itself.
        recomputation: which decoder layers are recomputed.
        device: device of the deltas; that of the weights by default.

    Raises:
        UserError: if the model cannot recompute the layers that are wanted.
    """
    if run_config.base_dropout is False:
        switch_off_dropout(model)
    path = resolve_delta_path(
        run_config.delta_path,
        DTYPES[run_config.precision],
        run_config.dropout,
        "cpu" if device is None else device.type,
    )
    deltas = attach(model, num_blocks, dropout=run_config.dropout, delta_path=path, device=device)
    recompute_layers(model, recomputation, reentrant=run_config.reentrant)
    return ModelWithDeltas(model, deltas, install_loss_head(model, shapes))
