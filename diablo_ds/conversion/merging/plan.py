"""What a merge will write: each new file, tensor by tensor, before anything is read."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from diablo_ds.errors import UserError
from diablo_ds.files.tensor_files import DTYPE_NAMES, StoredTensor

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of a new file."""

    name: str
    source: StoredTensor
    dtype: torch.dtype
    """In the new file."""
    offset: int
    """First byte, from the start of the new file."""
    layer: str
    """The layer whose delta is added; empty for none."""

    @property
    def num_bytes(self) -> int:
        """Bytes in the new file."""
        return self.source.num_elements * self.dtype.itemsize

    @property
    def is_copied(self) -> bool:
        """Whether its bytes are those of the base."""
        return not self.layer and self.dtype == self.source.dtype


@dataclass(frozen=True)
class PlannedShard:
    """A new file."""

    name: str
    header: bytes
    """All bytes before the tensors."""
    tensors: tuple[PlannedTensor, ...]
    """In the order of the file."""

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return len(self.header) + sum(tensor.num_bytes for tensor in self.tensors)


def parse_size(text: str) -> int:
    """Return bytes from text such as "5GB", "500MiB" or "1000000".

    Raises:
        UserError: if it is not a size from 1 byte.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    size = int(float(match[1]) * unit) if match and unit else 0
    if size < 1:
        raise UserError(
            "max_shard_size must be a number of bytes, or of KB, MB, GB, KiB, MiB or GiB; got "
            f"max_shard_size={text!r}; an example is 5GB"
        )
    return size


def plan_shards(
    tensors: Mapping[str, StoredTensor],
    layer_of: Mapping[str, str],
    *,
    dtype: torch.dtype | None = None,
    max_bytes: int | None = None,
) -> list[PlannedShard]:
    """Plan the files of a merged model.

    Args:
        tensors: the base's.
        layer_of: the layer whose delta is added, by the name of its weight in the files.
        dtype: of the new weights; that of the base by default. Tensors that are more precise than
            the others of the base remain so.
        max_bytes: size up to which a new file is filled with tensors; by default each file of the
            base becomes one of the same name.
    """
    dtypes = _new_dtypes(tensors, dtype)
    by_file: dict[Path, list[str]] = {}
    for name in sorted(tensors, key=lambda name: (tensors[name].file.name, tensors[name].offset)):
        by_file.setdefault(tensors[name].file, []).append(name)
    if max_bytes is None:
        return [
            _plan_shard(file.name, names, tensors, dtypes, layer_of, file)
            for file, names in by_file.items()
        ]
    ordered = [name for names in by_file.values() for name in names]
    groups = _fill(ordered, tensors, dtypes, max_bytes)
    metadata_of = next(iter(by_file))
    return [
        _plan_shard(_shard_name(number, len(groups)), group, tensors, dtypes, layer_of, metadata_of)
        for number, group in enumerate(groups, 1)
    ]


def _shard_name(number: int, count: int) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"


def _new_dtypes(
    tensors: Mapping[str, StoredTensor], dtype: torch.dtype | None
) -> dict[str, torch.dtype]:
    if dtype is None:
        return {name: tensor.dtype for name, tensor in tensors.items()}
    main = main_dtype(tensors.values())

    def new(old: torch.dtype) -> torch.dtype:
        is_converted = old in _FLOATS and (old == main or old.itemsize < dtype.itemsize)
        return dtype if is_converted else old

    return {name: new(tensor.dtype) for name, tensor in tensors.items()}


def main_dtype(tensors: Iterable[StoredTensor]) -> torch.dtype:
    """Return the float dtype of most of a checkpoint's elements."""
    elements: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        if tensor.dtype in _FLOATS:
            elements[tensor.dtype] += tensor.num_elements
    if not elements:
        raise UserError("base files must hold weights of 16, 32 or 64 bits a number; got none")
    return elements.most_common(1)[0][0]


def _fill(
    names: Sequence[str],
    tensors: Mapping[str, StoredTensor],
    dtypes: Mapping[str, torch.dtype],
    max_bytes: int,
) -> list[list[str]]:
    groups: list[list[str]] = []
    filled = 0
    for name in names:
        num_bytes = tensors[name].num_elements * dtypes[name].itemsize
        if not groups or filled + num_bytes > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += num_bytes
    return groups


def _plan_shard(
    shard_name: str,
    names: Sequence[str],
    tensors: Mapping[str, StoredTensor],
    dtypes: Mapping[str, torch.dtype],
    layer_of: Mapping[str, str],
    metadata_of: Path,
) -> PlannedShard:
    """Plan a file; one with the same tensors as a file of the base gets its header, byte by byte.

    Args:
        shard_name: of the new file.
        names: its tensors.
        tensors: all of the base.
        dtypes: the new ones, by name.
        layer_of: see `plan_shards`.
        metadata_of: the file of the base whose metadata it takes.
    """
    old_header = _read_raw_header(metadata_of)
    old = json.loads(old_header[8:])
    same = old.keys() - {"__metadata__"} == set(names) and all(
        dtypes[name] == tensors[name].dtype and tensors[name].file == metadata_of for name in names
    )
    if same:
        header = old_header
    else:
        # Larger elements first, so that each tensor begins at a multiple of its element's size.
        names = sorted(names, key=lambda name: -dtypes[name].itemsize)
        header = _build_header(names, tensors, dtypes, old.get("__metadata__"))
    offset, planned = len(header), []
    for name in names:
        tensor = PlannedTensor(name, tensors[name], dtypes[name], offset, layer_of.get(name, ""))
        planned.append(tensor)
        offset += tensor.num_bytes
    return PlannedShard(shard_name, header, tuple(planned))


def _read_raw_header(file: Path) -> bytes:
    with file.open("rb") as stream:
        length = stream.read(8)
        return length + stream.read(int.from_bytes(length, "little"))


def _build_header(
    names: Sequence[str],
    tensors: Mapping[str, StoredTensor],
    dtypes: Mapping[str, torch.dtype],
    metadata: object,
) -> bytes:
    entries: dict[str, object] = {"__metadata__": metadata or {"format": "pt"}}
    start = 0
    for name in names:
        end = start + tensors[name].num_elements * dtypes[name].itemsize
        entries[name] = {
            "dtype": DTYPE_NAMES[dtypes[name]],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
