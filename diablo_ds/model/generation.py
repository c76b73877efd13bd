"""Text that a model generates, without the settings that its folder brings along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    row = [*prompt]
    stream_greedily(model, prompt, num_tokens, (), row.append)
    return row


@torch.no_grad()
def stream_greedily(
    model: Any,
    prompt: list[int],
    max_new_tokens: int,
    end_ids: Sequence[int],
    on_token: Callable[[int], object],
) -> None:
    """Continue a prompt by the likeliest tokens, up to an end token, and hand out each at once.

    Args:
        model: a causal LM of transformers; its generation config does not count.
        prompt: token ids, at least one.
        max_new_tokens: most tokens that are added.
        end_ids: tokens after which the model stops.
        on_token: called with each new token, the end token included.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = plain = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=0,
        eos_token_id=list(end_ids) or None,
    )
    try:
        ids = torch.tensor([prompt], device=model.device)
        mask = torch.ones_like(ids)
        streamer = _Streamer(len(prompt), on_token)
        model.generate(ids, attention_mask=mask, generation_config=plain, streamer=streamer)
    finally:
        model.generation_config = own


class _Streamer:
    """What transformers calls with the prompt and then with each new token."""

    def __init__(self, num_prompt: int, on_token: Callable[[int], object]) -> None:
        self._to_skip = num_prompt
        self._on_token = on_token

    def put(self, tokens: torch.Tensor) -> None:
        """Take some tokens."""
        for token in tokens.flatten().tolist():
            if self._to_skip:
                self._to_skip -= 1
            else:
                self._on_token(token)

    def end(self) -> None:
        """Take note of the end."""
