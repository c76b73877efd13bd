"""Llamas with random weights, saved as a base model that a run loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig


def save_random_llama(
    folder: Path, dtype: torch.dtype, *, max_shard_size: str = "5GB", **shape: Any
) -> None:
    """Save config and weights, the same at each call.

    Args:
        folder: where they are saved; a tokenizer is not.
        dtype: of the weights.
        max_shard_size: of each file of weights.
        shape: arguments of `LlamaConfig`.
    """
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(LlamaConfig(**shape), dtype=dtype)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
