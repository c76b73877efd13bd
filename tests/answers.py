"""Requests to evaluated models, models that answer them clearly, and what they answer."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import diablo_ds
from diablo_ds.evaluation.engine import Engine
from diablo_ds.model.requests import ChoiceRequest, GenerationRequest, LossRequest
from tests.tiny import build_model, byte_tokenizer

END = 256


def spread(model: Any, seed: int = 1) -> Any:
    """Draw a model's matrices so that its tokens differ clearly in how likely they are."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                std = 2 * parameter.shape[-1] ** -0.5
                parameter.normal_(0, std, generator=generator)
    return model.eval()


def save_base_and_adapter(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """Save a tiny base and an adapter that changes its answers; return both folders."""
    base, adapter = folder / "base", folder / "tuned"
    model = spread(build_model("llama", **changes))
    model.save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    generator = torch.Generator().manual_seed(2)
    for delta in diablo_ds.attach(model, 4).values():
        delta.data.normal_(0, 0.2, generator=generator)
    diablo_ds.save(model, adapter)
    return base, adapter


def _tokens(generator: torch.Generator, count: int) -> tuple[int, ...]:
    return tuple(torch.randint(0, END, (count,), generator=generator).tolist())


def generation_requests(count: int = 7, seed: int = 0) -> list[GenerationRequest]:
    """Prompts of very unequal length; most are answered greedily, some are drawn."""
    generator = torch.Generator().manual_seed(seed)
    requests = []
    for number in range(count):
        length, most = torch.randint(2, 30, (2,), generator=generator).tolist()
        if number == 1:
            length, most = 40, 1  # the longest prompt leaves its batch at once
        drawn = {"temperature": 0.8, "top_p": 0.9, "seed": number} if number % 3 == 2 else {}
        prompt = _tokens(generator, length)
        requests.append(GenerationRequest(prompt, most, frozenset({END, 7}), **drawn))
    return requests


def choice_requests(count: int = 5, seed: int = 0) -> list[ChoiceRequest]:
    """Continuations that share some tokens, all of them, or none, and that have one or several."""
    generator = torch.Generator().manual_seed(seed)
    requests = []
    for number in range(count):
        prompt, shared = (_tokens(generator, n) for n in (2 + 3 * number, number % 3))
        endings = [_tokens(generator, 1 + (number * choice) % 5) for choice in range(3)]
        requests.append(ChoiceRequest(prompt, tuple((*shared, *ending) for ending in endings)))
    whole = requests[0].continuations[0]
    return [*requests, ChoiceRequest(requests[-1].prompt, (whole, (*whole, 5, 6), (*whole, 5)))]


def loss_requests(count: int = 5, seed: int = 0) -> list[LossRequest]:
    """Examples of unequal length, the first of whose tokens have no loss."""
    generator = torch.Generator().manual_seed(seed)
    rows = [_tokens(generator, 3 + 5 * number) for number in range(count)]
    return [LossRequest(row, (-100,) * (1 + n) + row[1 + n :]) for n, row in enumerate(rows)]


def answers(engine: Engine) -> dict[str, Any]:
    """Return what an engine answers to all requests, as JSON has it."""
    found: dict[str, Any] = {}
    asked = {
        "generate": generation_requests(),
        "choose": choice_requests(),
        "losses": loss_requests(),
    }
    for method, requests in asked.items():
        results: dict[int, Any] = {}
        getattr(engine, method)(requests, results.__setitem__)
        assert sorted(results) == list(range(len(requests)))
        found[method] = [asdict(results[index]) for index in range(len(requests))]
    return found
