"""What a base model's files hold, against what its architecture needs: nothing more, nothing less.

transformers skips tensors that it does not expect, such as the scales of quantised weights, and
would train on what is left.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diablo_ds.errors import UserError
from diablo_ds.files.tensor_files import StoredTensor, find_tensors
from diablo_ds.model.architecture import auto_class, build_meta_model

_SHOWN = 3


def check_contents(model_config: Any, folder: Path) -> None:
    """Raise UserError unless a checkpoint holds exactly the tensors of its model.

    Reads headers only: transformers converts and compares the names and shapes on the meta device.
    It needs the package accelerate for that. Without it, names are compared where a checkpoint
    needs no conversion; any other is compared while it is loaded, by `check_loading_info`. Tensors
    that the architecture declares ignorable, tied weights and rotary frequencies may be there.

    Args:
        model_config: the model's Hugging Face config.
        folder: with the safetensors files.
    """
    from transformers.utils import is_accelerate_available

    tensors = find_tensors(folder)
    if is_accelerate_available():
        model, info = _compare(model_config, folder)
        check_loading_info(info, model, folder)
    else:
        model = build_meta_model(model_config)
        if fits_checkpoint(model, tensors):
            _check_unexpected(tensors.keys() - model.state_dict().keys(), model, folder)
    check_stored_dtypes(tensors, _ignored(model), folder)


def _compare(model_config: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    """Return the model on the meta device, and what transformers found in the files."""
    with _quiet():
        try:
            found: tuple[Any, dict[str, Any]] = auto_class(model_config).from_pretrained(
                folder,
                config=model_config,
                dtype=torch.bfloat16,
                device_map="meta",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
        except Exception as error:  # whatever a conversion raises
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"model folder must hold a causal LM; got {folder}: {reason}") from None
    return found


def check_loading_info(info: Mapping[str, Any], model: Any, folder: Path) -> None:
    """Raise UserError unless transformers found each tensor of a model, and no others.

    Args:
        info: transformers' loading info.
        model: the model.
        folder: where its files are.
    """
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    missing = sorted(set(info["missing_keys"]) - set(tied))
    mismatched = sorted(info.get("mismatched_keys", ()))
    if mismatched:
        name, stored, wanted = mismatched[0]
        raise UserError(
            "checkpoint tensors must have the shapes that the config says; got "
            f"{len(mismatched)} that do not, e.g. {name} of {_shape(stored)} in the files and "
            f"{_shape(wanted)} by the config, in {folder}; {_repair(name)}"
        )
    if missing:
        raise UserError(
            f"checkpoint must hold every tensor of the model; got {_some(missing)} missing in "
            f"{folder}"
        )
    _check_unexpected(info["unexpected_keys"], model, folder)


def _check_unexpected(names: Collection[str], model: Any, folder: Path) -> None:
    """Raise UserError if there are tensors that the model neither has nor declares ignorable."""
    ignored = _ignored(model)
    unexpected = [name for name in sorted(names) if not _matches(name, ignored)]
    if unexpected:
        scales = any("scale" in name or "zero" in name for name in unexpected)
        repair = (
            "they look like those of quantised weights without a quantization_config; name the "
            "model's unquantised weights"
            if scales
            else "is it the checkpoint of another architecture, or of a later version of it?"
        )
        raise UserError(
            "checkpoint must hold no tensors that the model has no place for; got "
            f"{_some(unexpected)} unexpected in {folder}; {repair}"
        )


def check_stored_dtypes(
    tensors: Mapping[str, StoredTensor], ignored: Collection[str], folder: Path
) -> None:
    """Raise UserError if weights are stored as numbers that mean nothing without their scales.

    Args:
        tensors: the stored ones, by name.
        ignored: regular expressions for names of tensors that may be such.
        folder: where they are.
    """
    quantised = [
        name
        for name, tensor in tensors.items()
        if tensor.dtype.itemsize == 1 and tensor.dtype != torch.bool and not _matches(name, ignored)
    ]
    if quantised:
        dtype = str(tensors[quantised[0]].dtype).removeprefix("torch.")
        raise UserError(
            "weights must be stored in 16, 32 or 64 bits a number, unless a quantization_config "
            f"says what they mean; got {_some(quantised)} in {dtype} in {folder}; name the "
            "model's unquantised weights"
        )


def _ignored(model: Any) -> list[str]:
    """Return patterns of the names that an architecture declares ignorable."""
    declared = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return [*declared, r"rotary_emb\.inv_freq$"]


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _some(names: list[str]) -> str:
    return f"{len(names)}, e.g. {', '.join(names[:_SHOWN])}"


def _shape(size: Any) -> str:
    return str(list(size))


def _repair(name: str) -> str:
    if "embed" in name or "wte" in name or "lm_head" in name:
        return "correct vocab_size in config.json"
    return "correct config.json, or copy the files again"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' own report, and its progress bar, while this is entered."""
    from transformers.utils import logging

    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


def fits_checkpoint(model: nn.Module, tensors: Mapping[str, StoredTensor]) -> bool:
    """Return whether every parameter and saved buffer is stored under its own name and shape.

    Otherwise the checkpoint needs transformers' conversions, such as renamed or fused weights.

    Args:
        model: the model on the meta device.
        tensors: the checkpoint's, by name.
    """
    parameters = dict(model.named_parameters())  # a tied one counts once
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - set(parameters)
    return all(
        name in tensors
        and tensors[name].shape == tuple(value.shape)
        and tensors[name].dtype.is_floating_point == value.dtype.is_floating_point
        for name, value in model.state_dict(keep_vars=True).items()
        if name not in tied
    )
