"""A base model before its weights: its config, its class, its shapes, its decoder layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from diablo_ds import distributed
from diablo_ds.ds_config import BaseSizes

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def load_model_config(folder: Path) -> Any:
    """Load a model folder's Hugging Face config.

    Raises:
        ValueError: if it is missing, malformed or of an unknown model type.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"model config must be a known causal LM's; got {folder}: {error}"
        ) from None


def build_meta_model(config: Any) -> nn.Module:
    """Build a model without weights, for shapes only."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def num_elements(module: nn.Module) -> int:
    """Return the elements of all parameters of a module, partitioned or not; a tied one once."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters())


def decoder_layer_classes(model: nn.Module) -> list[type[nn.Module]]:
    """Return the classes of the model's decoder layers, as transformers names them."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return list({type(m) for m in model.modules() if type(m).__name__ in names})


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the model's decoder layers in their order; none where transformers names no class."""
    classes = tuple(decoder_layer_classes(model))
    return [module for module in model.modules() if classes and isinstance(module, classes)]


def measure_base(shapes: Any, dtype: torch.dtype) -> BaseSizes:
    """Return the sizes of a model on the meta device, and of the cluster's smallest device.

    Collective, where the ranks have joined: every rank must call this.
    """
    layer_sizes = [num_elements(layer) for layer in decoder_layers(shapes)]
    head = shapes.get_output_embeddings()
    mine = (distributed.device_memory_bytes(), distributed.local_world_size())
    memory, ranks = zip(*distributed.gather_objects(mine), strict=True)
    return BaseSizes(
        hidden_size=shapes.config.get_text_config().hidden_size,
        total=num_elements(shapes),
        layer=max(layer_sizes, default=0),
        head=0 if head is None else num_elements(head),
        element_bytes=dtype.itemsize,
        ranks_per_node=int(min(ranks)) if min(ranks) == max(ranks) else 1,
        device_bytes=min(memory),
    )
