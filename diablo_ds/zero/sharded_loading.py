"""Loading a base model under ZeRO-3: each rank reads the bytes of its own shards, and no others.

The model is built without weights. Then, one parameter after another, a rank reads its part of the
tensor straight from the safetensors file and DeepSpeed takes it over as this rank's shard. Nothing
is communicated, the base files are read once in total, and besides its shards a rank holds a buffer
for one tensor, of which it fills only its part.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diablo_ds.files.tensor_files import StoredTensor, TensorReader
from diablo_ds.model.pretrained import build_without_weights
from diablo_ds.ranks import distributed
from diablo_ds.ranks.heartbeat import heart
from diablo_ds.ranks.progress import BYTES, Progress
from diablo_ds.zero.private.parameters import Partitioner


@dataclass(frozen=True)
class LoadingReport:
    """What one rank read."""

    bytes_read: int
    checkpoint_bytes: int


def load_shards(
    model_config: Any,
    tensors: Mapping[str, StoredTensor],
    dtype: torch.dtype,
    ds_config: dict[str, Any],
) -> tuple[Any, LoadingReport]:
    """Build a causal LM whose parameters are partitioned, from this rank's part of a checkpoint.

    Collective only in that every rank must call it: nothing is communicated.

    Args:
        model_config: the model's Hugging Face config.
        tensors: the checkpoint's, which fit the model (`fits_checkpoint`).
        dtype: of the parameters; a checkpoint of another dtype is converted on the way.
        ds_config: the complete DeepSpeed config.

    Returns:
        The model, and what was read.

    Raises:
        OSError: if a file cannot be read.
    """
    model = build_without_weights(model_config, dtype)
    with contextlib.redirect_stdout(io.StringIO()):
        partitioner = Partitioner(ds_config)
    device = partitioner.device
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    largest = max(parameter.numel() for parameter in model.parameters())
    room = torch.empty(largest, dtype=dtype, device=device)  # for one full tensor
    reader = TensorReader(tensors)
    partitioned: dict[int, nn.Parameter] = {}
    sizes = [
        (tensors[names[id(parameter)]].dtype.itemsize, parameter.numel())
        for parameter in model.parameters()
    ]
    own_bytes = sum(
        size * (min(stop, count) - min(start, count))
        for size, count in sizes
        for start, stop in partitioner.own_ranges(count)
    )
    is_shown = distributed.is_main_process()
    with Progress("Loading the model", own_bytes, BYTES, is_shown=is_shown) as progress:
        for module in model.modules():
            for key, parameter in list(
                module.named_parameters(recurse=False, remove_duplicate=False)
            ):
                if id(parameter) not in partitioned:
                    heart.beat("loading the model")
                    flat = room[: parameter.numel()]
                    done = reader.bytes_read
                    full = nn.Parameter(flat.view(parameter.shape), requires_grad=False)
                    partitioner.take_over(full)
                    for start, stop in partitioner.own_ranges(parameter.numel()):
                        reader.read(names[id(parameter)], flat, start, stop)
                    partitioner.keep_shard(full)
                    partitioned[id(parameter)] = full
                    progress.advance(reader.bytes_read - done)
                setattr(module, key, partitioned[id(parameter)])
    _load_buffers(model, reader, device)
    reader.close()
    total = sum(tensor.num_bytes for tensor in tensors.values())
    return model, LoadingReport(reader.bytes_read, total)


def _load_buffers(model: nn.Module, reader: TensorReader, device: torch.device) -> None:
    saved = model.state_dict(keep_vars=True)
    for name, buffer in list(model.named_buffers()):
        owner, _, key = name.rpartition(".")
        buffer = buffer.to(device)
        if name in saved and name in reader.tensors:
            flat: Tensor = torch.empty_like(buffer, memory_format=torch.contiguous_format).view(-1)
            reader.read(name, flat)
            buffer = flat.view(buffer.shape)
        setattr(model.get_submodule(owner), key, buffer)
