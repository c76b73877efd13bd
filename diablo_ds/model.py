"""Base models: find, fingerprint and load them; the one user of transformers' model classes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diablo_ds import distributed
from diablo_ds.default_model import cache_folder, converted_model
from diablo_ds.ds_config import BaseSizes
from diablo_ds.hub import hub_folder, looks_like_hub_name
from diablo_ds.loss import LossHead
from diablo_ds.metrics import logger
from diablo_ds.placement import can_place_by_name
from diablo_ds.sharded_loading import fits_checkpoint, load_shards
from diablo_ds.tensor_files import find_tensors, read_header

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FLASH_ATTENTION = "flash_attention"
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


def load_model_config(folder: Path) -> Any:
    """Load a model folder's Hugging Face config.

    Raises:
        ValueError: if it is missing, malformed or of an unknown model type.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"model config must be a known causal LM's; got {folder}: {error}"
        ) from None


def build_meta_model(config: Any) -> nn.Module:
    """Build a model without weights, for shapes only."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model


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
        ValueError: if the checkpoint is not whole, or lacks a tensor of the model.
    """
    model = None
    if partition_config is not None:
        model = _load_shards(folder, DTYPES[precision], partition_config)
    if model is None:
        model = _from_pretrained(folder, DTYPES[precision], partition_config)
    if attention:
        model.set_attn_implementation(attention)
    # A cache would serve no purpose, and with one transformers does not keep packed examples apart.
    model.config.use_cache = False
    # from_pretrained leaves it in evaluation mode, where neither the adapter's dropout nor gradient
    # checkpointing would act.
    return model.train()


def _load_shards(folder: Path, dtype: torch.dtype, ds_config: dict[str, Any]) -> Any:
    """Return the partitioned model, or None where only transformers can load the checkpoint."""
    tensors = distributed.on_every_rank(lambda: find_tensors(folder))
    config = load_model_config(folder)
    if getattr(config, "quantization_config", None) or not can_place_by_name():
        return None
    if not fits_checkpoint(build_meta_model(config), tensors):
        return None
    model, report = load_shards(config, tensors, dtype, ds_config)
    logger.info(
        f"Read {report.bytes_read / 1e9:.3f} of {report.checkpoint_bytes / 1e9:.3f} GB on rank 0"
    )
    return model


def _from_pretrained(folder: Path, dtype: torch.dtype, ds_config: dict[str, Any] | None) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig

    # transformers sees ZeRO-3 only while this object is alive.
    keep_alive = HfDeepSpeedConfig(ds_config) if ds_config else None
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, output_loading_info=True
        )
    except OSError as error:
        raise ValueError(f"model folder must hold a causal LM; got {folder}: {error}") from None
    del keep_alive
    tied = getattr(model, "all_tied_weights_keys", {})
    missing = sorted(set(info["missing_keys"]) - set(tied))
    if missing:
        raise ValueError(
            "checkpoint must hold every tensor of the model; got "
            f"{len(missing)} missing, e.g. {missing[:3]} in {folder}"
        )
    return model


def choose_attention(setting: str, shapes: Any, precision: str, device_type: str) -> str:
    """Return the name of the attention that transformers shall use.

    Args:
        setting: "auto" or a name. Auto takes the newest FlashAttention package that is installed,
            on a GPU in half precision; else what transformers takes, PyTorch's own kernels.
        shapes: the model on the meta device.
        precision: "bf16", "fp16" or "fp32".
        device_type: "cuda" or "cpu".

    Raises:
        ValueError: if the attention cannot run here, or the model does not support it.
    """
    import transformers.utils as utils

    fits_flash = device_type == "cuda" and precision != "fp32"
    installed = [
        name
        for name, is_installed in (
            ("flash_attention_3", utils.is_flash_attn_3_available()),
            ("flash_attention_2", utils.is_flash_attn_2_available()),
        )
        if is_installed
    ]
    supports_flash = getattr(shapes, "_supports_flash_attn", False)
    if setting == "auto":
        if fits_flash and supports_flash and installed:
            return installed[0]
        default: str = shapes.config.get_text_config()._attn_implementation
        return default
    if setting.startswith(FLASH_ATTENTION):
        if not fits_flash:
            raise ValueError(
                f"{setting} needs a GPU and half precision; got precision={precision!r} on "
                f"{device_type}; use sdpa"
            )
        if setting not in installed:
            raise ValueError(
                f"{setting} needs its package; got {', '.join(installed) or 'none'} installed; "
                "use sdpa"
            )
    supports_sdpa = getattr(shapes, "_supports_sdpa", False)
    if not {"sdpa": supports_sdpa, "eager": True}.get(setting, supports_flash):
        raise ValueError(
            f"attention must be one that the model supports; got attention={setting!r} for model "
            f"type {shapes.config.model_type!r}; use auto"
        )
    return setting


def attends_by_variable_length(model: Any) -> bool:
    """Return whether packed examples are told apart by their lengths instead of by a mask."""
    name: str = model.config.get_text_config()._attn_implementation
    return name.startswith(FLASH_ATTENTION)


class _NoOutput:
    """What a model without layers returns: empty hidden states, and nothing else."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int) -> Any:
        return self.last_hidden_state if index == 0 else None

    def __getattr__(self, name: str) -> None:
        return None


class _NoLayers(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    def forward(self, *args: Any, **inputs: Any) -> _NoOutput:
        return _NoOutput(torch.empty(1, 2, self.hidden_size, device="meta"))


def install_loss_head(model: Any, shapes: Any) -> bool:
    """Let the model's head compute the loss chunk by chunk, where its output is the logits.

    Some models scale or cap what their head returns; those keep their logits whole.

    Args:
        model: the model.
        shapes: the same on the meta device; its layers and head are lost.

    Returns:
        Whether it was done.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:  # none, or a target of the adapter
        return False
    outputs: list[torch.Tensor] = []
    probe = nn.Linear(head.in_features, head.out_features, device="meta")
    probe.register_forward_hook(lambda module, args, output: outputs.append(output))
    shapes.set_output_embeddings(probe)
    setattr(shapes, shapes.base_model_prefix, _NoLayers(head.in_features))
    try:
        result = shapes(input_ids=torch.zeros(1, 2, dtype=torch.int64, device="meta"))
    except (AttributeError, KeyError, TypeError, ValueError):
        return False  # a model of another build
    if len(outputs) != 1 or result.logits is not outputs[0]:
        return False
    model.set_output_embeddings(LossHead(head))
    return True


def num_elements(module: nn.Module) -> int:
    """Return the elements of all parameters of a module, partitioned or not; a tied one once."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters())


def decoder_layer_classes(model: nn.Module) -> list[type[nn.Module]]:
    """Return the classes of the model's decoder layers, as transformers names them."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return list({type(m) for m in model.modules() if type(m).__name__ in names})


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the model's decoder layers in their order; none where transformers names no class."""
    classes = tuple(decoder_layer_classes(model))
    return [module for module in model.modules() if classes and isinstance(module, classes)]


def measure_base(shapes: Any, dtype: torch.dtype) -> BaseSizes:
    """Return the sizes of a model on the meta device, and of the cluster's smallest device.

    Collective, where the ranks have joined: every rank must call this.
    """
    layer_sizes = [num_elements(layer) for layer in decoder_layers(shapes)]
    head = shapes.get_output_embeddings()
    mine = (distributed.device_memory_bytes(), distributed.local_world_size())
    has_joined = torch.distributed.is_initialized()
    memory, ranks = zip(*(distributed.gather_objects(mine) if has_joined else [mine]), strict=True)
    return BaseSizes(
        hidden_size=shapes.config.get_text_config().hidden_size,
        total=num_elements(shapes),
        layer=max(layer_sizes, default=0),
        head=0 if head is None else num_elements(head),
        element_bytes=dtype.itemsize,
        ranks_per_node=int(min(ranks)) if min(ranks) == max(ranks) else 1,
        device_bytes=min(memory),
    )


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
