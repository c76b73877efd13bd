"""A base model before its weights: its config, its class, its shapes, its decoder layers."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diablo_ds.config.remote_code import trusts_code
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json
from diablo_ds.model.remote_code import check_remote_code, load_remote_model_class

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def load_model_config(folder: Path) -> Any:
    """Load a model folder's Hugging Face config, and check what no training can do without.

    Code that a checkpoint brings is not run, unless the user's command names the option for it.

    Raises:
        UserError: if it is missing, malformed, quantised or of an unknown model type.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    file = folder / "config.json"
    values = read_config_values(folder)
    check_remote_code(values, file, is_known=values["model_type"] in CONFIG_MAPPING)
    try:
        model_config = AutoConfig.from_pretrained(folder, trust_remote_code=trusts_code())
        if trusts_code():
            load_remote_model_class(model_config, folder)
        text = model_config.get_text_config()
        _check_sizes({name: getattr(text, name, None) for name in (*_SIZES, _KEY_HEADS)}, file)
    # Each model type's config class raises errors of its own kinds for a wrong value.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"model config must be a known causal LM's, with legal values; got {file}: {reason}"
        ) from None
    return model_config


def read_config_values(folder: Path) -> dict[str, Any]:
    """Read a model folder's config.json, and check what needs no knowledge of its family.

    Raises:
        UserError: if it is missing, malformed, quantised, or names code of the hub.
    """
    file = folder / "config.json"
    values = read_json(file)
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise UserError(f"model config must be a JSON object with a model_type; got {file}")
    _check_not_quantised(values, file)
    _check_no_kernels(values, file)
    _check_sizes(values, file)
    return values


_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_MAX_LAYERS, _MAX_SIZE = 10_000, 1 << 31
_KEY_HEADS = "num_key_value_heads"


def _check_sizes(values: Mapping[str, Any], file: Path) -> None:
    """Raise UserError if a size is no positive integer, or the heads do not divide."""
    for name in (*_SIZES, "intermediate_size", _KEY_HEADS, "max_position_embeddings", "head_dim"):
        value = values.get(name)
        # Some architectures have a list of one value a layer, or none for "not used".
        if value is None or isinstance(value, list | tuple):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(
                f"{name} of a model must be an integer of at least 1; got {name}={value!r} in "
                f"{file}"
            )
        most = _MAX_LAYERS if name == "num_hidden_layers" else _MAX_SIZE
        if value > most:
            raise UserError(
                f"{name} of a model must be at most {most:,}; got {name}={value!r:.30} in {file}"
            )
    heads, key_heads = values.get("num_attention_heads"), values.get(_KEY_HEADS)
    if isinstance(heads, int) and isinstance(key_heads, int) and heads % key_heads:
        raise UserError(
            "num_attention_heads must be a multiple of num_key_value_heads; got "
            f"num_attention_heads={heads}, num_key_value_heads={key_heads} in {file}"
        )


def _check_no_kernels(values: Mapping[str, Any], file: Path) -> None:
    """Raise UserError if a config names an implementation that is fetched from the hub as code."""
    for key, value in values.items():
        names = value.values() if isinstance(value, dict) else (value,)
        if key.endswith("_implementation") and any("/" in str(name) for name in names):
            raise UserError(
                f"model config must name no kernels of the hub; got {key}={value!r} in "
                f"{file}; remove it, and choose with --attention"
            )
        if isinstance(value, dict):
            _check_no_kernels(value, file)


def _check_not_quantised(values: Mapping[str, Any], file: Path) -> None:
    """Raise UserError if a config says that the weights are quantised."""
    text = values.get("text_config")
    for part in (values, text if isinstance(text, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            if not part.get(key):
                continue
            found = part[key]
            method = found.get("quant_method", "unknown") if isinstance(found, dict) else found
            raise UserError(
                "base weights must not be quantised, since a delta is added to the weight itself; "
                f"got quantization method {method!r} in {file}; name the model's unquantised "
                "weights, or dequantise them first: load them with transformers, "
                "model.dequantize(), model.save_pretrained(folder)"
            )


def auto_class(model_config: Any) -> Any:
    """Return transformers' auto class for a config: of causal LMs, or of those that see images.

    A model that sees images is loaded in full, so that layers keep the names they have in its
    checkpoint; only its text model is trained.

    Raises:
        UserError: if the model does not generate text from text.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    classes = [AutoModelForCausalLM, AutoModelForImageTextToText]
    if is_multimodal(model_config):
        classes.reverse()
    for candidate in classes:
        if type(model_config) in candidate._model_mapping:
            return candidate
    raise UserError(
        f"model must be a causal LM; got model_type={model_config.model_type!r}, for which this "
        "version of transformers has none"
    )


def is_multimodal(model_config: Any) -> bool:
    """Return whether a config describes more than a text model."""
    return model_config.get_text_config() is not model_config


def build_model(model_config: Any, dtype: torch.dtype, attention: str = "") -> Any:
    """Build a model with random weights; inside `torch.device("meta")` without any.

    Args:
        model_config: the Hugging Face config; not changed.
        dtype: of its parameters.
        attention: transformers' name of the attention; its own choice by default.

    Raises:
        UserError: if the config's values do not describe a model.
    """
    options = {"attn_implementation": attention} if attention else {}
    auto = auto_class(model_config)
    try:
        return auto.from_config(
            copy.deepcopy(model_config), dtype=dtype, trust_remote_code=False, **options
        )
    except Exception as error:  # whatever a model's code raises for widths that do not fit
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            "model config must have values that a model can be built from; got model type "
            f"{model_config.model_type!r}: {reason}"
        ) from None


def build_meta_model(model_config: Any) -> Any:
    """Build a model without weights, for shapes only; see `build_model`."""
    with torch.device("meta"):
        return build_model(model_config, torch.float32)


@torch.no_grad()
def check_runs(shapes: Any) -> None:
    """Raise UserError unless a model maps tokens to logits, without computing any.

    Args:
        shapes: the model on the meta device.
    """
    tokens = torch.zeros(1, 2, dtype=torch.int64, device="meta")
    # A mask of 4 dims is taken as it is; to build one, values would be needed.
    mask = torch.zeros(1, 1, 2, 2, device="meta")
    try:
        shapes(input_ids=tokens, position_ids=tokens, attention_mask=mask, use_cache=False)
    except Exception as error:  # whatever a model's code raises
        reason = " ".join(str(error).split()) or type(error).__name__
        # Some models look at values, which is no mistake.
        fits = not isinstance(error, RuntimeError) or not re.search("shape|size|dim", reason)
        if fits and not isinstance(error, AttributeError):
            return
        rule = "run on text alone" if fits else "have a config with values that fit each other"
        raise UserError(
            f"model must {rule}; got model type {shapes.config.model_type!r}: {reason}"
        ) from None


def text_decoder(model: Any) -> Any:
    """Return the part of a model that reads text: all of it, where it reads nothing else."""
    model_config = getattr(model, "config", None)  # a plain module has none
    if model_config is None or not is_multimodal(model_config):
        return model
    text_type = type(model_config.get_text_config())
    inner = [m for m in model.modules() if isinstance(getattr(m, "config", None), text_type)]
    return inner[0] if inner else model


def text_decoder_name(model: Any) -> str:
    """Return the name of `text_decoder` inside the model; empty for all of it."""
    decoder = text_decoder(model)
    return next((str(name) for name, module in model.named_modules() if module is decoder), "")


def num_elements(module: nn.Module) -> int:
    """Return the elements of all parameters of a module, partitioned or not; a tied one once."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters())


def decoder_layer_classes(model: Any) -> list[type[nn.Module]]:
    """Return the classes of the text model's decoder layers, as transformers names them."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return list({type(m) for m in text_decoder(model).modules() if type(m).__name__ in names})


def decoder_layers(model: Any) -> list[nn.Module]:
    """Return the text model's decoder layers in order; none where transformers names no class."""
    classes = tuple(decoder_layer_classes(model))
    modules = text_decoder(model).modules()
    return [module for module in modules if classes and isinstance(module, classes)]


def measure_base(shapes: Any, dtype: torch.dtype) -> BaseSizes:
    """Return the sizes of a model on the meta device, for a training in ``dtype``."""
    layer_sizes = [num_elements(layer) for layer in decoder_layers(shapes)]
    head = shapes.get_output_embeddings()
    return BaseSizes(
        hidden_size=shapes.config.get_text_config().hidden_size,
        total=num_elements(shapes),
        layer=max(layer_sizes, default=0),
        head=0 if head is None else num_elements(head),
        element_bytes=dtype.itemsize,
    )


@dataclass(frozen=True)
class BaseSizes:
    """Sizes of a base model in elements, from which values for "auto" are derived."""

    hidden_size: int
    total: int
    """All base parameters."""
    layer: int
    """The largest decoder layer."""
    head: int
    """The output head."""
    element_bytes: int = 2
