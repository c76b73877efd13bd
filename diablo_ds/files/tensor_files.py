"""Checkpoints as safetensors files: which tensor lies where, and reading any part of one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diablo_ds.errors import UserError
from diablo_ds.files import strict_json
from diablo_ds.files.atomic import read_json
from diablo_ds.files.bounds import MAX_HEADER_BYTES
from diablo_ds.files.named_files import open_named

INDEX_FILE = "model.safetensors.index.json"
"""Tells in which of a checkpoint's files each tensor lies."""
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
"""Names of dtypes in safetensors headers."""
_FIELDS = {"dtype", "shape", "data_offsets"}
_MAX_SIZE, _MAX_DIMS = 1 << 62, 64
_READ_BYTES = 16 * 2**20
"""Bytes read at once: large enough for a parallel file system, small beside any shard."""


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies."""

    file: Path
    offset: int
    """First byte, from the start of the file."""
    num_bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """Elements, all of them."""
        return math.prod(self.shape)


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Return a safetensors file's header, without its metadata, and the offset of its data.

    Raises:
        UserError: if the file is not a complete safetensors file.
    """
    size = file.stat().st_size
    with open_named(file) as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= min(size - 8, MAX_HEADER_BYTES):
            raise UserError(f"model file must be a safetensors file; got {file} of {size} bytes")
        try:
            header: Any = strict_json.loads(stream.read(length))
        except ValueError as error:
            raise _broken(file, getattr(error, "msg", str(error))) from None
    if not isinstance(header, dict):
        raise _broken(file, "it must be an object")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if reason := _misfit(entry):
            raise _broken(file, f"{reason}: {name!a:.80}")
    end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end > size:
        raise UserError(
            f"model file must be complete; got {file} of {size} bytes, not {end}; copy it again"
        )
    return header, 8 + length


def _misfit(entry: Any) -> str:
    """Return the rule that a tensor's entry in a header breaks; "" where it breaks none."""
    if not isinstance(entry, dict) or not entry.keys() >= _FIELDS:
        return f"a tensor must have {', '.join(sorted(_FIELDS))}"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        return "a dtype must be text"
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(
            type(number) is int and 0 <= number < _MAX_SIZE for number in numbers
        ):
            return "shape and data_offsets must be lists of integers of at least 0"
    if len(offsets) != 2 or offsets[0] > offsets[1] or len(shape) > _MAX_DIMS:
        return f"data_offsets must be start and end, and a shape have up to {_MAX_DIMS} dims"
    return ""


def _broken(file: Path, reason: str) -> UserError:
    return UserError(
        f"model file must be a safetensors file; got a broken header in {file}: {reason}"
    )


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that make up a checkpoint, which need not exist.

    They are those of the index or, without one, `model.safetensors`, as transformers has it, or,
    without either, all. A folder may hold the same weights a second time, in another form.

    Raises:
        UserError: if the index is not one, or names a file outside the folder.
    """
    index, single = folder / INDEX_FILE, folder / "model.safetensors"
    if not index.is_file():
        return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    value = read_json(index)
    names = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(names, dict) or not all(
        isinstance(name, str) and name == Path(name).name for name in names.values()
    ):
        raise UserError(
            "index must have a weight_map from names of tensors to files of its folder; got "
            f"{index}; copy it again"
        )
    return [folder / name for name in sorted(set(names.values()))]


def find_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of a checkpoint by name.

    Only the files of `weight_files` count.

    Raises:
        UserError: if a file is missing, cut off or of an unknown dtype.
    """
    found: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        if not file.is_file():
            raise UserError(f"checkpoint must hold every file of its index; got no {file}")
        found |= file_tensors(file)
    return found


def file_tensors(file: Path) -> dict[str, StoredTensor]:
    """Return every tensor of a safetensors file by name.

    Raises:
        UserError: if the file is cut off, damaged, or a dtype is unknown.
    """
    header, data_offset = read_header(file)
    found: dict[str, StoredTensor] = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        if entry["dtype"] not in _DTYPES:
            raise UserError(f"tensor dtype must be known; got {entry['dtype']} in {file}")
        dtype, shape = _DTYPES[entry["dtype"]], (*entry["shape"],)
        tensor = StoredTensor(file, data_offset + start, end - start, dtype, shape)
        if tensor.num_bytes != tensor.num_elements * dtype.itemsize:
            raise UserError(
                "model file must be a safetensors file; got a header with wrong sizes for "
                f"{name} in {file}; copy it again"
            )
        found[name] = tensor
    return found


class TensorReader:
    """Reads parts of stored tensors, and counts the bytes.

    Args:
        tensors: see `find_tensors`.
    """

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        self.tensors = tensors
        self.bytes_read = 0
        self._path: Path | None = None
        self._buffer = torch.empty(_READ_BYTES, dtype=torch.uint8)

    def read(self, name: str, flat: Tensor, start: int = 0, stop: int | None = None) -> None:
        """Copy elements ``[start, stop)`` of a tensor to the same places of ``flat``.

        Args:
            name: of the tensor.
            flat: ``[num_elements]``, of any floating dtype, on any device; changed in place.
            start: first element.
            stop: end; the tensor's by default.

        Raises:
            OSError: if the file cannot be read, or ends early.
        """
        tensor = self.tensors[name]
        stop = tensor.num_elements if stop is None else min(stop, tensor.num_elements)
        if start >= stop:
            return
        if tensor.file != self._path:  # tensors lie in few files, and in the order of the layers
            self.close()
            self._path, self._stream = tensor.file, tensor.file.open("rb", buffering=0)
        size = tensor.dtype.itemsize
        self._stream.seek(tensor.offset + start * size)
        step = _READ_BYTES // size
        for first in range(start, stop, step):
            last = min(first + step, stop)
            part = self._buffer[: (last - first) * size]
            self._fill(part)
            flat[first:last].copy_(part.view(tensor.dtype))

    def _fill(self, part: Tensor) -> None:
        view, done = part.numpy().data, 0
        while done < len(view):
            count = self._stream.readinto(view[done:])
            if not count:
                raise OSError(f"{self._path} ended early")
            done += count
        self.bytes_read += done

    def close(self) -> None:
        """Close the file that is open."""
        if self._path is not None:
            self._stream.close()
            self._path = None
