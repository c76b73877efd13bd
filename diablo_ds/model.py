"""Base models: find, fingerprint and load them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from diablo_ds import distributed
from diablo_ds.architecture import DTYPES, auto_class, build_meta_model, load_model_config
from diablo_ds.checkpoint_contents import check_contents, check_loading_info
from diablo_ds.default_model import cache_folder, converted_model
from diablo_ds.hub import hub_folder, looks_like_hub_name
from diablo_ds.metrics import logger
from diablo_ds.placement import can_place_by_name
from diablo_ds.sharded_loading import fits_checkpoint, load_shards
from diablo_ds.tensor_files import find_tensors, read_header
from diablo_ds.varlen import VARLEN, register_varlen_attention

_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_HUB_COPIES = ["consolidated*", "original/*"]
"""The same weights again, in their authors' own format."""
_SAMPLES_PER_TENSOR_BYTES = 1024


def find_model(name: str, cache: str = "", *, shared: bool = False) -> Path:
    """Return the local folder of a base model, converting or downloading it where needed.

    Args:
        name: "default", a local folder, or a hub name such as "org/model".
        cache: cache folder for the converted default model; empty for the user's.
        shared: use a cache folder that other users can write, too.

    Raises:
        ValueError: if the folder or the hub's model does not exist, or is not a causal LM's.
    """
    if name == "default":
        return converted_model(cache_folder(cache), shared=shared)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if not looks_like_hub_name(name):
            raise ValueError(f"model must be an existing folder or a hub name; got model={name!r}")
        folder = hub_folder(name, "model", _HUB_FILES, ignored=_HUB_COPIES)
    if not (folder / "config.json").is_file():
        raise ValueError(f"model folder must hold a config.json; got model={name!r} in {folder}")
    if not list(folder.glob("*.safetensors")):
        raise ValueError(
            f"model folder must hold *.safetensors files; got model={name!r} in {folder}"
        )
    return folder


def load_base(
    folder: Path,
    precision: str,
    partition_config: dict[str, Any] | None = None,
    *,
    attention: str = "",
) -> Any:
    """Load the base model's weights.

    Collective under ZeRO-3: every rank must call this.

    Args:
        folder: a folder with config.json and safetensors files.
        precision: "bf16", "fp16" or "fp32".
        partition_config: the DeepSpeed config under ZeRO-3. Each parameter is then partitioned as
            soon as it is created, and no rank ever holds the whole model. Each rank reads only
            its own shards; where a checkpoint needs conversions, or DeepSpeed's version is not
            one that was tested, rank 0 reads all and broadcasts it tensor by tensor.
        attention: transformers' name of the attention; its own choice by default.

    Returns:
        A Hugging Face causal LM in training mode, partitioned or whole on the CPU.

    Raises:
        ValueError: if the checkpoint is not whole, lacks a tensor of the model, or holds others.
    """
    config = distributed.on_every_rank(lambda: load_model_config(folder))
    distributed.on_main_process(lambda: check_contents(config, folder))
    model, dtype = None, DTYPES[precision]
    if partition_config is not None:
        model = _load_shards(config, folder, dtype, partition_config)
    if model is None:
        model = _from_pretrained(config, folder, dtype, partition_config)
    if attention == VARLEN:
        register_varlen_attention()
    if attention:
        model.set_attn_implementation(attention)
    # A cache would serve no purpose, and with one transformers does not keep packed examples apart.
    model.config.use_cache = False
    # from_pretrained leaves it in evaluation mode, where neither the adapter's dropout nor gradient
    # checkpointing would act.
    return model.train()


def _load_shards(config: Any, folder: Path, dtype: torch.dtype, ds_config: dict[str, Any]) -> Any:
    """Return the partitioned model, or None where only transformers can load the checkpoint."""
    tensors = distributed.on_every_rank(lambda: find_tensors(folder))
    if not can_place_by_name() or not fits_checkpoint(build_meta_model(config), tensors):
        return None
    model, report = load_shards(config, tensors, dtype, ds_config)
    logger.info(
        f"Read {report.bytes_read / 1e9:.3f} of {report.checkpoint_bytes / 1e9:.3f} GB on rank 0"
    )
    return model


def _from_pretrained(
    config: Any, folder: Path, dtype: torch.dtype, ds_config: dict[str, Any] | None
) -> Any:
    from transformers.integrations import HfDeepSpeedConfig

    # transformers sees ZeRO-3 only while this object is alive.
    keep_alive = HfDeepSpeedConfig(ds_config) if ds_config else None
    try:
        model, info = auto_class(config).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,  # a pickled checkpoint beside them is not looked at
        )
    except OSError as error:
        raise ValueError(f"model folder must hold a causal LM; got {folder}: {error}") from None
    del keep_alive
    check_loading_info(info, model, folder)
    return model


def fingerprint(folder: Path) -> str:
    """Return a hash that tells one base model's weights from another's, in well under a second.

    It covers the safetensors headers (names, shapes, dtypes) and the first 1 KiB of each tensor,
    so it also tells a model from its fine-tuned versions, without reading the whole checkpoint.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        header, data_offset = read_header(path)
        digest.update(json.dumps(header, sort_keys=True).encode())
        with path.open("rb") as file:
            for entry in header.values():
                start, end = entry["data_offsets"]
                file.seek(data_offset + start)
                digest.update(file.read(min(end - start, _SAMPLES_PER_TENSOR_BYTES)))
    return digest.hexdigest()
