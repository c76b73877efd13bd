"""Load a base model's weights, sharded from the start under ZeRO-3."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from diablo_ds.files.tensor_files import find_tensors
from diablo_ds.model.architecture import DTYPES
from diablo_ds.model.base import Base, read_base
from diablo_ds.model.checkpoint_contents import fits_checkpoint
from diablo_ds.model.pretrained import from_pretrained
from diablo_ds.model.varlen import VARLEN, register_varlen_attention
from diablo_ds.ranks import distributed
from diablo_ds.ranks.log import logger
from diablo_ds.ranks.progress import format_bytes
from diablo_ds.zero.private.names import is_tested
from diablo_ds.zero.sharded_loading import load_shards


def load_base(
    folder: Path,
    precision: str,
    partition_config: dict[str, Any] | None = None,
    *,
    attention: str = "",
) -> Any:
    """Read a base model's config and load its weights; see `load_weights`.

    Args:
        folder: a folder with config.json and safetensors files.
        precision: "bf16", "fp16" or "fp32".
        partition_config: the DeepSpeed config under ZeRO-3.
        attention: transformers' name of the attention; its own choice by default.
    """
    return load_weights(read_base(folder), precision, partition_config, attention=attention)


def load_weights(
    base: Base,
    precision: str,
    partition_config: dict[str, Any] | None = None,
    *,
    attention: str = "",
) -> Any:
    """Load the weights of a base model whose config was read and compared with its files.

    Collective under ZeRO-3: every rank must call this.

    Args:
        base: the base model.
        precision: "bf16", "fp16" or "fp32".
        partition_config: the DeepSpeed config under ZeRO-3. Each parameter is then partitioned as
            soon as it is created, and no rank ever holds the full model. Each rank reads only
            its own shards; where the base files need conversions, or DeepSpeed's version is not
            one that was tested, rank 0 reads all and broadcasts it tensor by tensor.
        attention: transformers' name of the attention; its own choice by default.

    Returns:
        A Hugging Face causal LM in training mode, partitioned or, unsharded, on the CPU.

    Raises:
        UserError: if the base files are damaged, lack a tensor of the model, or hold others.
    """
    model, dtype = None, DTYPES[precision]
    if partition_config is not None:
        model = _load_shards(base, dtype, partition_config)
    if model is None:
        own_config = copy.deepcopy(base.model_config)  # transformers changes it
        model = from_pretrained(own_config, base.folder, dtype, partition_config)
    if attention == VARLEN:
        register_varlen_attention()
    if attention:
        model.set_attn_implementation(attention)
    # A cache would serve no purpose, and with one transformers does not keep packed examples apart.
    model.config.use_cache = False
    # from_pretrained leaves it in evaluation mode, where neither the adapter's dropout nor
    # recomputation would act.
    return model.train()


def _load_shards(base: Base, dtype: torch.dtype, ds_config: dict[str, Any]) -> Any:
    """Return the partitioned model, or None where only transformers can load the files."""
    tensors = distributed.on_every_rank(lambda: find_tensors(base.folder))
    if not is_tested() or not fits_checkpoint(base.shapes, tensors):
        return None
    model, report = load_shards(base.model_config, tensors, dtype, ds_config)
    logger.info(
        f"Read {format_bytes(report.bytes_read)} of {format_bytes(report.checkpoint_bytes)} "
        "on rank 0"
    )
    return model
