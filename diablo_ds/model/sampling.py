"""The next token of each row: the likeliest, or one drawn by the row's own random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diablo_ds.model.requests import GenerationRequest


def draws(request: GenerationRequest) -> Tensor | None:
    """Return a request's random numbers in [0, 1), one for each new token; None if it is greedy.

    They depend on its seed only, so that an answer depends neither on the batch nor on the rank.
    """
    if request.temperature == 0:
        return None
    generator = torch.Generator().manual_seed(request.seed)
    return torch.rand(request.max_new_tokens, generator=generator, dtype=torch.float64)


def choose_tokens(
    logits: Tensor, requests: Sequence[GenerationRequest], uniforms: Sequence[float | None]
) -> list[int]:
    """Return the next token of each row.

    Args:
        logits: ``[rows, vocab]``.
        requests: of each row; give temperature and nucleus (``top_p``).
        uniforms: a random number in [0, 1) of each row; None for its likeliest token.
    """
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    drawn = [row for row, uniform in enumerate(uniforms) if uniform is not None]
    if drawn:
        device = logits.device
        temperatures = torch.tensor([[requests[row].temperature] for row in drawn], device=device)
        top_ps = torch.tensor(
            [[requests[row].top_p] for row in drawn], device=device, dtype=torch.float64
        )
        numbers = torch.tensor([[uniforms[row]] for row in drawn], device=device)
        chosen = _draw(logits[drawn].float() / temperatures, top_ps, numbers.double())
        for row, token in zip(drawn, chosen, strict=True):
            tokens[row] = token
    return tokens


def _draw(logits: Tensor, top_p: Tensor, uniform: Tensor) -> list[int]:
    """Draw from the smallest set of likeliest tokens whose probability reaches ``top_p``.

    Nucleus sampling (Holtzman et al., arXiv 1904.09751), by inverting the cumulative distribution.

    Args:
        logits: ``[rows, vocab]``, fp32.
        top_p: ``[rows, 1]``, fp64.
        uniform: ``[rows, 1]``, fp64, in [0, 1).
    """
    likely = logits.double().softmax(dim=-1)
    probabilities, order = likely.sort(dim=-1, descending=True, stable=True)  # [rows, vocab]
    cumulative = probabilities.cumsum(dim=-1)  # [rows, vocab]
    is_kept = cumulative - probabilities < top_p
    total = torch.where(is_kept, cumulative, 0).amax(dim=-1, keepdim=True)
    place = torch.searchsorted(cumulative, uniform * total, right=True)
    place = place.clamp(max=is_kept.sum(dim=-1, keepdim=True) - 1)
    tokens: list[int] = order.gather(1, place)[:, 0].tolist()
    return tokens
