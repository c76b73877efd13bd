"""Tiny models with DiaBlo adapters by PEFT."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import OPTConfig, OPTForCausalLM

from diablo_ds.peft import DiaBloConfig
from tests.tiny import build_model


def base(family: str = "llama") -> torch.nn.Module:
    """A tiny base model in evaluation mode."""
    if family != "opt":
        return build_model(family).eval()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2}
    return OPTForCausalLM(OPTConfig(**sizes, num_attention_heads=4, vocab_size=264)).eval()


def tokens(rows: int = 3, length: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (rows, length), generator=generator)


def config(**changes: Any) -> DiaBloConfig:
    """A config whose adapters start at random, so that they change something."""
    return DiaBloConfig(
        **{"num_blocks": 4, "init_weights": False, "task_type": "CAUSAL_LM", **changes}
    )


def tiny_peft_model(family: str = "llama", seed: int = 0, **changes: Any) -> PeftModel:
    model = base(family)
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
