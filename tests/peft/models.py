"""Tiny models with DiaBlo adapters by PEFT."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, get_peft_model

from diablo_ds.peft import DiaBloConfig
from tests.tiny import build_model


def tokens(rows: int = 3, length: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (rows, length), generator=generator)


def config(**changes: Any) -> DiaBloConfig:
    """A config whose adapters start at random, so that they change something."""
    return DiaBloConfig(
        **{"num_blocks": 4, "init_weights": False, "task_type": "CAUSAL_LM", **changes}
    )


def tiny_peft_model(family: str = "llama", seed: int = 0, **changes: Any) -> PeftModel:
    model = build_model(family).eval()
    torch.manual_seed(seed)
    return get_peft_model(model, config(**changes)).eval()


@torch.no_grad()
def logits(model: torch.nn.Module, **inputs: Any) -> torch.Tensor:
    return model(input_ids=tokens(), **inputs).logits


def deltas(model: torch.nn.Module, adapter: str = "default") -> dict[str, torch.nn.Parameter]:
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.endswith(f".diablo_delta.{adapter}")
    }
