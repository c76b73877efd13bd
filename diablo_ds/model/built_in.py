"""Shapes of published models, by the names that they have on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diablo_ds.model.shape import Shape

_VISION = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 896,
    "patch_size": 14,
    "vision_use_head": False,
}
"""The part of Gemma 3 that sees, from 4B on."""


@dataclass(frozen=True)
class BuiltIn:
    """A published model: where its weights are, and its shape."""

    hub_names: tuple[str, ...]
    """Models of this shape; the first is the one that a plan for the short name starts."""
    family: str
    """Model type in the Hugging Face config."""
    shape: Shape
    head_dim: int | None = None
    """Width of a head, where it is not the hidden size over the heads."""
    vision: Mapping[str, Any] = field(default_factory=dict)
    """Config of the part that sees, of a model that has one."""


def _built_in(
    family: str,
    hub_names: str,
    *sizes: int,
    tied: bool = False,
    head_dim: int | None = None,
    vision: Mapping[str, Any] | None = None,
) -> BuiltIn:
    hidden, inner, layers, heads, key_heads, vocab = sizes
    shape = Shape(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocab,
        tie_word_embeddings=tied,
    )
    owner, _, names = hub_names.partition("/")
    full_names = tuple(f"{owner}/{name}" if owner else name for name in names.split())
    return BuiltIn(full_names, family, shape, head_dim, vision or {})


def _llama(names: str, *sizes: int, tied: bool = False) -> BuiltIn:
    return _built_in("llama", f"meta-llama/{names}", *sizes, tied=tied)


def _qwen25(size: str, *sizes: int, tied: bool = False) -> BuiltIn:
    names = f"Qwen/Qwen2.5-{size} Qwen2.5-{size}-Instruct"
    coder = "" if size == "72B" else f" Qwen2.5-Coder-{size} Qwen2.5-Coder-{size}-Instruct"
    return _built_in("qwen2", names + coder, *sizes, tied=tied)


def _qwen3(names: str, *sizes: int, tied: bool = False) -> BuiltIn:
    return _built_in("qwen3", f"Qwen/{names}", *sizes, tied=tied, head_dim=128)


def _gemma3(size: str, *sizes: int, sees: bool = True, head_dim: int = 256) -> BuiltIn:
    names = f"google/gemma-3-{size}-pt gemma-3-{size}-it"
    if not sees:
        suffix = "" if size == "270m" else "-pt"
        names = f"google/gemma-3-{size}{suffix} gemma-3-{size}-it"
    return _built_in(
        "gemma3" if sees else "gemma3_text",
        names,
        *sizes,
        tied=True,
        head_dim=head_dim,
        vision=_VISION if sees else None,
    )


def _mistral(names: str, *sizes: int, head_dim: int | None = None) -> BuiltIn:
    return _built_in("mistral", f"mistralai/{names}", *sizes, head_dim=head_dim)


def _smollm(family: str, names: str, *sizes: int) -> BuiltIn:
    return _built_in(family, f"HuggingFaceTB/{names}", *sizes, tied=True)


# Sizes are those of the published config.json files: hidden, intermediate, layers, query heads, key
# heads, vocabulary. The number of parameters that they give is tested.
BUILT_IN = {
    "smollm2-135m": _smollm(
        "llama", "SmolLM2-135M-Instruct SmolLM2-135M", 576, 1536, 30, 9, 3, 49152
    ),
    "smollm2-360m": _smollm(
        "llama", "SmolLM2-360M SmolLM2-360M-Instruct", 960, 2560, 32, 15, 5, 49152
    ),
    "smollm2-1.7b": _smollm(
        "llama", "SmolLM2-1.7B SmolLM2-1.7B-Instruct", 2048, 8192, 24, 32, 32, 49152
    ),
    "smollm3-3b": _smollm("smollm3", "SmolLM3-3B-Base SmolLM3-3B", 2048, 11008, 36, 16, 4, 128256),
    "llama-2-7b": _llama("Llama-2-7b-hf Llama-2-7b-chat-hf", 4096, 11008, 32, 32, 32, 32000),
    "llama-2-13b": _llama("Llama-2-13b-hf Llama-2-13b-chat-hf", 5120, 13824, 40, 40, 40, 32000),
    "llama-3-8b": _llama(
        "Meta-Llama-3-8B Meta-Llama-3-8B-Instruct", 4096, 14336, 32, 32, 8, 128256
    ),
    "llama-3-70b": _llama(
        "Meta-Llama-3-70B Meta-Llama-3-70B-Instruct", 8192, 28672, 80, 64, 8, 128256
    ),
    "llama-3.1-8b": _llama(
        "Llama-3.1-8B Llama-3.1-8B-Instruct Meta-Llama-3.1-8B Meta-Llama-3.1-8B-Instruct",
        *(4096, 14336, 32, 32, 8, 128256),
    ),
    "llama-3.1-70b": _llama(
        "Llama-3.1-70B Llama-3.1-70B-Instruct Meta-Llama-3.1-70B Meta-Llama-3.1-70B-Instruct",
        *(8192, 28672, 80, 64, 8, 128256),
    ),
    "llama-3-405b": _llama(
        "Llama-3.1-405B Llama-3.1-405B-Instruct Meta-Llama-3.1-405B Meta-Llama-3.1-405B-Instruct",
        *(16384, 53248, 126, 128, 8, 128256),
    ),
    "llama-3.2-1b": _llama(
        "Llama-3.2-1B Llama-3.2-1B-Instruct", 2048, 8192, 16, 32, 8, 128256, tied=True
    ),
    "llama-3.2-3b": _llama(
        "Llama-3.2-3B Llama-3.2-3B-Instruct", 3072, 8192, 28, 24, 8, 128256, tied=True
    ),
    "llama-3.3-70b": _llama("Llama-3.3-70B-Instruct", 8192, 28672, 80, 64, 8, 128256),
    "qwen2.5-0.5b": _qwen25("0.5B", 896, 4864, 24, 14, 2, 151936, tied=True),
    "qwen2.5-1.5b": _qwen25("1.5B", 1536, 8960, 28, 12, 2, 151936, tied=True),
    "qwen2.5-3b": _qwen25("3B", 2048, 11008, 36, 16, 2, 151936, tied=True),
    "qwen2.5-7b": _qwen25("7B", 3584, 18944, 28, 28, 4, 152064),
    "qwen2.5-14b": _qwen25("14B", 5120, 13824, 48, 40, 8, 152064),
    "qwen2.5-32b": _qwen25("32B", 5120, 27648, 64, 40, 8, 152064),
    "qwen2.5-72b": _qwen25("72B", 8192, 29568, 80, 64, 8, 152064),
    "qwen3-0.6b": _qwen3("Qwen3-0.6B Qwen3-0.6B-Base", 1024, 3072, 28, 16, 8, 151936, tied=True),
    "qwen3-1.7b": _qwen3("Qwen3-1.7B Qwen3-1.7B-Base", 2048, 6144, 28, 16, 8, 151936, tied=True),
    "qwen3-4b": _qwen3(
        "Qwen3-4B Qwen3-4B-Base Qwen3-4B-Instruct-2507 Qwen3-4B-Thinking-2507",
        *(2560, 9728, 36, 32, 8, 151936),
        tied=True,
    ),
    "qwen3-8b": _qwen3("Qwen3-8B Qwen3-8B-Base", 4096, 12288, 36, 32, 8, 151936),
    "qwen3-14b": _qwen3("Qwen3-14B Qwen3-14B-Base", 5120, 17408, 40, 40, 8, 151936),
    "qwen3-32b": _qwen3("Qwen3-32B", 5120, 25600, 64, 64, 8, 151936),
    "gemma-3-270m": _gemma3("270m", 640, 2048, 18, 4, 1, 262144, sees=False),
    "gemma-3-1b": _gemma3("1b", 1152, 6912, 26, 4, 1, 262144, sees=False),
    "gemma-3-4b": _gemma3("4b", 2560, 10240, 34, 8, 4, 262208),
    "gemma-3-12b": _gemma3("12b", 3840, 15360, 48, 16, 8, 262208),
    "gemma-3-27b": _gemma3("27b", 5376, 21504, 62, 32, 16, 262208, head_dim=128),
    "mistral-7b": _mistral(
        "Mistral-7B-v0.1 Mistral-7B-Instruct-v0.1 Mistral-7B-Instruct-v0.2",
        4096,
        14336,
        32,
        32,
        8,
        32000,
    ),
    "mistral-7b-v0.3": _mistral(
        "Mistral-7B-v0.3 Mistral-7B-Instruct-v0.3", 4096, 14336, 32, 32, 8, 32768
    ),
    "mistral-nemo-12b": _mistral(
        "Mistral-Nemo-Base-2407 Mistral-Nemo-Instruct-2407",
        *(5120, 14336, 40, 32, 8, 131072),
        head_dim=128,
    ),
    "mistral-small-24b": _mistral(
        "Mistral-Small-24B-Base-2501 Mistral-Small-24B-Instruct-2501",
        *(5120, 32768, 40, 32, 8, 131072),
        head_dim=128,
    ),
    "phi-4": _built_in("phi3", "microsoft/phi-4", 5120, 17920, 40, 40, 10, 100352),
    "phi-4-mini": _built_in(
        "phi3", "microsoft/Phi-4-mini-instruct", 3072, 8192, 32, 24, 8, 200064, tied=True
    ),
}
"""By the short name that `--model` takes, in lower case."""

BY_HUB_NAME = {
    hub_name.lower(): (built_in, hub_name)
    for built_in in BUILT_IN.values()
    for hub_name in built_in.hub_names
}
"""Shape and exact name by the hub name in lower case."""


def find_built_in(model: str) -> tuple[BuiltIn, str] | None:
    """Return a built-in shape and the model that has it, or None.

    Args:
        model: a short name, a hub name or one without its owner, in any case.
    """
    name = model.lower()
    if name in BUILT_IN:
        return BUILT_IN[name], BUILT_IN[name].hub_names[0]
    return BY_HUB_NAME.get(name) or next(
        (found for hub_name, found in BY_HUB_NAME.items() if hub_name.endswith(f"/{name}")), None
    )
