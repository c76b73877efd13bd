"""Text that a model generates, without the settings that its folder brings along."""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def continue_greedily(model: Any, prompt: list[int], num_tokens: int) -> list[int]:
    """Return a prompt with the tokens that a model continues it by, each the likeliest one.

    Penalties, end tokens and the like in the model's generation config do not count, and that
    config stays as it is.

    Args:
        model: a causal LM of transformers.
        prompt: token ids, at least one.
        num_tokens: how many are added.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = plain = GenerationConfig(
        do_sample=False, max_new_tokens=num_tokens, pad_token_id=0
    )
    try:
        ids = torch.tensor([prompt], device=model.device)
        mask = torch.ones_like(ids)
        rows = model.generate(ids, attention_mask=mask, generation_config=plain)
    finally:
        model.generation_config = own
    row: list[int] = rows[0].tolist()
    return row
