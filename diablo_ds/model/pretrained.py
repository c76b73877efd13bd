"""Building a base model: by transformers, from its files, or without weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diablo_ds.errors import UserError
from diablo_ds.files.tensor_files import find_tensors
from diablo_ds.model.architecture import (
    auto_class,
    build_model,
)
from diablo_ds.model.checkpoint_contents import check_loading_info
from diablo_ds.ranks import distributed
from diablo_ds.ranks.progress import BYTES, Progress


def from_pretrained(
    model_config: Any, folder: Path, dtype: torch.dtype, ds_config: dict[str, Any] | None
) -> Any:
    """Load a causal LM by transformers, which knows how to convert older checkpoints.

    Args:
        model_config: the model's Hugging Face config.
        folder: with safetensors files.
        dtype: of the parameters.
        ds_config: the complete DeepSpeed config under ZeRO-3, which then partitions each
            parameter as soon as it is created; else None.

    Raises:
        UserError: if the files are not those of a causal LM, or not of this one.
    """
    from transformers.integrations import HfDeepSpeedConfig

    # transformers sees ZeRO-3 only while this object is alive.
    keep_alive = HfDeepSpeedConfig(ds_config) if ds_config else None
    try:
        with _shown_loading(folder):
            model, info = auto_class(model_config).from_pretrained(
                folder,
                config=model_config,
                dtype=dtype,
                output_loading_info=True,
                trust_remote_code=False,
                use_safetensors=True,  # a pickled checkpoint beside them is not looked at
            )
    except OSError as error:
        raise UserError(f"model folder must hold a causal LM; got {folder}: {error}") from None
    del keep_alive
    check_loading_info(info, model, folder)
    return model


@contextlib.contextmanager
def _shown_loading(folder: Path) -> Iterator[None]:
    """Show the bytes that transformers has loaded, in place of its own bar."""
    from transformers.utils import logging

    sizes: dict[str, int] = {}
    with contextlib.suppress(UserError, OSError):  # which loading itself tells
        sizes = {name: tensor.num_bytes for name, tensor in find_tensors(folder).items()}

    def loaded(items: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        total, is_shown = sum(sizes.values()), distributed.is_main_process()
        with Progress("Loading the model", total, BYTES, is_shown=is_shown) as progress:
            for name, item in items:
                yield name, item
                progress.advance(sizes.get(name, 0))

    def hook(factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Items by the name of a parameter; it has other bars as well.
        return (
            loaded(*args) if kwargs.get("desc") == "Loading weights" else factory(*args, **kwargs)
        )

    before = logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Move each parameter to the meta device as soon as a module registers it; buffers stay."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def build_without_weights(model_config: Any, dtype: torch.dtype) -> Any:
    """Return the model with its parameters on the meta device and its buffers filled."""
    from transformers.initialization import no_init_weights

    with no_init_weights(), _parameters_on_meta():
        model = build_model(model_config, dtype)
    model.tie_weights()
    return model


def hide_progress_bars() -> None:
    """Keep transformers from drawing progress bars."""
    from transformers.utils import logging

    logging.disable_progress_bar()
