"""A base model sharded over all ranks that is evaluated and not trained."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diablo_ds.adapter.blocks import block_parts
from diablo_ds.adapter.switching import added, layer_of
from diablo_ds.model.architecture import DTYPES, decoder_layer_classes, measure_base
from diablo_ds.model.base import Base
from diablo_ds.model.loss_head import install_loss_head
from diablo_ds.ranks import distributed
from diablo_ds.zero.joining import import_deepspeed
from diablo_ds.zero.loading import load_weights
from diablo_ds.zero.private.parameters import full_shape, shard


def shard_for_inference(base: Base, precision: str) -> Any:
    """Load a base model's shards, and return DeepSpeed's engine around them, in evaluation mode.

    Collective: every rank must call this.

    Args:
        base: the base model.
        precision: "bf16", "fp16" or "fp32".

    Raises:
        UserError: if the base files are damaged, lack a tensor of the model, or hold others.
    """
    deepspeed = import_deepspeed()
    ds_config = inference_config(base, precision)
    model = load_weights(base, precision, ds_config).eval().requires_grad_(False)
    install_loss_head(model, base.shapes)
    if classes := decoder_layer_classes(model):
        deepspeed.utils.set_z3_leaf_modules(model, classes)  # one gather per decoder layer
    with contextlib.redirect_stdout(io.StringIO()):
        ds_engine, *_ = deepspeed.initialize(model=model, config=ds_config)
    ds_engine.eval()
    return ds_engine


def inference_config(base: Base, precision: str) -> dict[str, Any]:
    """Return the DeepSpeed config of a model that is sharded and not trained."""
    sizes = measure_base(base.shapes, DTYPES[precision])
    kept = 2 * (sizes.layer + sizes.head)  # the layer in use and the next
    return {
        "train_micro_batch_size_per_gpu": 1,
        "train_batch_size": distributed.world_size(),
        "steps_per_print": 2**31 - 1,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
        "zero_optimization": {
            "stage": 3,
            "stage3_prefetch_bucket_size": sizes.layer,
            "stage3_max_live_parameters": kept,
            "stage3_max_reuse_distance": 0,
            "stage3_param_persistence_threshold": sizes.hidden_size,  # norms and biases
        },
    }


@contextlib.contextmanager
def deltas_in_shards(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Add an adapter's deltas to sharded weights inside the block, and put the shards back after.

    Each rank changes its own shards; nothing is communicated.

    Args:
        model: partitioned by ZeRO-3; its target layers have weights of floats.
        tensors: the deltas by "<layer>.delta", ``[num_blocks, in_block, out_block]``.
    """

    def changes() -> Iterator[tuple[Tensor, Tensor]]:
        for key, delta in tensors.items():
            layer: Any = model.get_submodule(layer_of(key))
            own = shard(layer.weight)
            yield own, _shard_of_delta(delta, full_shape(layer.weight), own.numel())

    with added(changes(), keep=lambda own: own.to("cpu", copy=True)):
        yield


def _shard_of_delta(delta: Tensor, shape: torch.Size, size: int) -> Tensor:
    """Return what a delta adds to this rank's shard of a weight, flat, ``[size]`` in fp32.

    Args:
        delta: ``[num_blocks, in_block, out_block]``.
        shape: of the full weight, ``(out_features, in_features)``.
        size: elements of a shard; the last may be padded beyond the weight.
    """
    out_features, in_features = shape
    _, in_block, out_block = delta.shape
    start = distributed.rank() * size
    stop = min(start + size, out_features * in_features)
    change = torch.zeros(size)
    if start >= stop:
        return change
    rows = range(start // in_features, -(-stop // in_features))  # all that the shard has a part of
    dense = torch.zeros(len(rows), in_features)
    for part in block_parts(rows, in_block, out_block):
        dense[part.rows, part.columns] = delta[part.block, :, part.outputs].float().cpu().t()
    first = rows.start * in_features
    change[: stop - start] = dense.view(-1)[start - first : stop - first]
    return change
