"""Loading a base model under ZeRO-3: each rank reads the bytes of its own shards, and no others.

The model is built without weights. Then, one parameter after another, a rank reads its part of the
tensor straight from the safetensors file and DeepSpeed takes it over as this rank's shard. Nothing
is communicated, the checkpoint is read once in total, and besides its shards a rank holds room for
one tensor, of which it fills only its part.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from diablo_ds.files.tensor_files import StoredTensor, TensorReader
from diablo_ds.model.pretrained import build_without_weights
from diablo_ds.ranks import distributed
from diablo_ds.ranks.heartbeat import heart

_SILENT_BELOW_BYTES = 2**30


@dataclass(frozen=True)
class LoadingReport:
    """What one rank read."""

    bytes_read: int
    checkpoint_bytes: int


def load_shards(
    config: Any, tensors: Mapping[str, StoredTensor], dtype: torch.dtype, ds_config: dict[str, Any]
) -> tuple[Any, LoadingReport]:
    """Build a causal LM whose parameters are partitioned, from this rank's part of a checkpoint.

    Collective only in that every rank must call it: nothing is communicated.

    Args:
        config: the model's Hugging Face config.
        tensors: the checkpoint's, which fit the model (`fits_checkpoint`).
        dtype: of the parameters; a checkpoint of another dtype is converted on the way.
        ds_config: the complete DeepSpeed config.

    Returns:
        The model, and what was read.

    Raises:
        OSError: if a file cannot be read.
    """
    import deepspeed

    model = build_without_weights(config, dtype)
    with contextlib.redirect_stdout(io.StringIO()):
        partitioner = deepspeed.zero.Init(config_dict_or_path=ds_config)
    device = partitioner.local_device
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    largest = max(parameter.numel() for parameter in model.parameters())
    room = torch.empty(largest, dtype=dtype, device=device)  # for one whole tensor
    reader = TensorReader(tensors)
    partitioned: dict[int, nn.Parameter] = {}
    with _progress(sum(p.numel() for p in model.parameters())) as bar:
        for module in model.modules():
            for key, parameter in list(module._parameters.items()):
                if parameter is None:
                    continue
                if id(parameter) not in partitioned:
                    heart.beat("loading the model")
                    flat = room[: parameter.numel()]
                    whole: Any = nn.Parameter(flat.view(parameter.shape), requires_grad=False)
                    partitioner._convert_to_deepspeed_param(whole)
                    for start, stop in _own_ranges(partitioner, whole):
                        reader.read(names[id(parameter)], flat, start, stop)
                    whole.partition()
                    partitioned[id(parameter)] = whole
                    bar.update(parameter.numel())
                setattr(module, key, partitioned[id(parameter)])
    _load_buffers(model, reader, device)
    reader.close()
    total = sum(tensor.num_bytes for tensor in tensors.values())
    return model, LoadingReport(reader.bytes_read, total)


def _own_ranges(partitioner: Any, whole: Any) -> Iterator[tuple[int, int]]:
    """Yield the elements this rank keeps: its shard, and its secondary one inside a node (hpZ)."""
    parts = [(partitioner.dp_world_size, partitioner.rank)]
    if partitioner.zero_param_process_group is not None:
        parts.append((partitioner.num_ranks_in_param_group, partitioner.rank_in_group))
    # DeepSpeed pads a tensor to a multiple of the world size and cuts it into equal parts.
    padded = -(-whole.ds_numel // partitioner.dp_world_size) * partitioner.dp_world_size
    done: tuple[int, int] = (0, 0)
    for num_parts, index in reversed(parts):  # the larger one first: it may hold the other
        size = padded // num_parts
        start, stop = index * size, (index + 1) * size
        if not done[0] <= start <= stop <= done[1]:
            yield start, stop
        done = start, stop


def _load_buffers(model: nn.Module, reader: TensorReader, device: torch.device) -> None:
    saved = model.state_dict(keep_vars=True)
    for name, buffer in list(model.named_buffers()):
        owner, _, key = name.rpartition(".")
        buffer = buffer.to(device)
        if name in saved and name in reader.tensors:
            flat: Tensor = torch.empty_like(buffer, memory_format=torch.contiguous_format).view(-1)
            reader.read(name, flat)
            buffer = flat.view(buffer.shape)
        model.get_submodule(owner)._buffers[key] = buffer


def _progress(num_elements: int) -> Any:
    return tqdm(
        total=num_elements,
        desc="loading",
        unit="parameter",
        unit_scale=True,
        disable=not distributed.is_main_process() or num_elements * 2 < _SILENT_BELOW_BYTES,
        leave=False,
    )
