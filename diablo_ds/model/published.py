"""Configs of models without their files: of published models, or from widths that are given."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diablo_ds.errors import UserError
from diablo_ds.files.hub import hub_folder, looks_like_hub_name
from diablo_ds.model.architecture import load_model_config
from diablo_ds.model.shape import Shape


@dataclass(frozen=True)
class BuiltIn:
    """A published model: where its weights are, and its shape."""

    hub_name: str
    family: str
    """Model type in the Hugging Face config."""
    shape: Shape


def _built_in(hub_name: str, family: str, *sizes: int, tied: bool = False) -> BuiltIn:
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
    return BuiltIn(hub_name, family, shape)


_QWEN = {
    "0.5b": ((896, 4864, 24, 14, 2, 151936), True),
    "1.5b": ((1536, 8960, 28, 12, 2, 151936), True),
    "3b": ((2048, 11008, 36, 16, 2, 151936), True),
    "7b": ((3584, 18944, 28, 28, 4, 152064), False),
    "14b": ((5120, 13824, 48, 40, 8, 152064), False),
    "32b": ((5120, 27648, 64, 40, 8, 152064), False),
    "72b": ((8192, 29568, 80, 64, 8, 152064), False),
}
# Sizes are those of the published config.json files.
BUILT_IN = {
    "smollm2-135m": _built_in("default", "llama", 576, 1536, 30, 9, 3, 49152, tied=True),
    "llama-2-7b": _built_in("meta-llama/Llama-2-7b-hf", "llama", 4096, 11008, 32, 32, 32, 32000),
    "llama-2-13b": _built_in("meta-llama/Llama-2-13b-hf", "llama", 5120, 13824, 40, 40, 40, 32000),
    "llama-3-8b": _built_in("meta-llama/Meta-Llama-3-8B", "llama", 4096, 14336, 32, 32, 8, 128256),
    "llama-3-70b": _built_in(
        "meta-llama/Meta-Llama-3-70B", "llama", 8192, 28672, 80, 64, 8, 128256
    ),
    "llama-3-405b": _built_in(
        "meta-llama/Llama-3.1-405B", "llama", 16384, 53248, 126, 128, 8, 128256
    ),
    "mistral-7b": _built_in("mistralai/Mistral-7B-v0.1", "mistral", 4096, 14336, 32, 32, 8, 32000),
    **{
        f"qwen2.5-{size}": _built_in(f"Qwen/Qwen2.5-{size.upper()}", "qwen2", *widths, tied=tied)
        for size, (widths, tied) in _QWEN.items()
    },
}
"""By the name that `--model` takes, in lower case."""

_NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def find_model_config(model: str, shape: Shape, length: int) -> tuple[Any, str]:
    """Return a model's Hugging Face config, and the name that a run takes.

    Args:
        model: a built-in name, "default", a folder, a hub name, or empty where ``shape`` says all.
        shape: widths that differ from the model's.
        length: tokens per sequence; a model given by its shape has at least that many positions.

    Raises:
        UserError: if there is no such model, or the shape is incomplete.
    """
    changes = {name: value for name, value in asdict(shape).items() if value is not None}
    if not model:
        return _build_config("llama", _checked_widths(changes), length), "PATH_OF_YOUR_MODEL"
    built_in = BUILT_IN.get("smollm2-135m" if model == "default" else model.lower())
    if built_in is not None:
        values = {**asdict(built_in.shape), **changes}
        run_name = "PATH_OF_YOUR_MODEL" if changes else built_in.hub_name
        return _build_config(built_in.family, values, length), run_name
    model_config = load_model_config(_config_folder(model))
    text = model_config.get_text_config()
    for name, value in changes.items():
        setattr(text, name, value)
    return model_config, "PATH_OF_YOUR_MODEL" if changes else model


def _checked_widths(changes: dict[str, Any]) -> dict[str, Any]:
    missing = [name for name in (*_NEEDED, "vocab_size") if name not in changes]
    if missing:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise UserError(
            "a model must be given by --model or by all of its widths; got none of "
            f"{options}; built in are {', '.join(BUILT_IN)}"
        )
    return {"num_key_value_heads": changes["num_attention_heads"], **changes}


def _build_config(family: str, values: dict[str, Any], length: int) -> Any:
    from transformers import AutoConfig

    heads, hidden = values["num_attention_heads"], values["hidden_size"]
    if hidden % heads or heads % values["num_key_value_heads"]:
        raise UserError(
            "hidden_size must be a multiple of num_attention_heads, and that one of "
            f"num_key_value_heads; got hidden_size={hidden}, num_attention_heads={heads}, "
            f"num_key_value_heads={values['num_key_value_heads']}"
        )
    return AutoConfig.for_model(family, **values, max_position_embeddings=max(length, 2048))


def _config_folder(model: str) -> Path:
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() or not looks_like_hub_name(model):
        raise UserError(
            "model must be a folder with a config.json, a hub name or a built-in shape; got "
            f"model={model!r}; built in are {', '.join(BUILT_IN)}"
        )
    try:
        return hub_folder(model, "model", ["config.json"])
    except UserError as error:
        raise UserError(f"{error}; built in are {', '.join(BUILT_IN)}") from None
