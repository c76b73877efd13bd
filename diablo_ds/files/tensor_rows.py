"""Rows of a stored tensor, a few at a time, so that no tensor has to fit into memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from diablo_ds.files.tensor_files import StoredTensor

CHUNK_BYTES = 8 * 2**20
"""Bytes of rows read at once."""


def as_matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return rows and columns of a tensor whose leading dims are taken as rows."""
    columns = shape[-1] if len(shape) > 1 else 1
    return (math.prod(shape) // columns if columns else 0), columns


def row_ranges(tensor: StoredTensor) -> Iterator[range]:
    """Yield the rows of a tensor, see `as_matrix_shape`, in ranges of about `CHUNK_BYTES`."""
    rows, columns = as_matrix_shape(tensor.shape)
    step = max(1, CHUNK_BYTES // max(1, columns * tensor.dtype.itemsize))
    for start in range(0, rows, step):
        yield range(start, min(start + step, rows))


def read_rows(tensor: StoredTensor, rows: range) -> Tensor:
    """Return rows of a stored tensor, ``[len(rows), columns]``, in its own dtype, on the CPU.

    Raises:
        OSError: if the file cannot be read, or ends early.
    """
    _, columns = as_matrix_shape(tensor.shape)
    size = tensor.dtype.itemsize
    data = bytearray(len(rows) * columns * size)
    with tensor.file.open("rb", buffering=0) as stream:
        stream.seek(tensor.offset + rows.start * columns * size)
        view, done = memoryview(data), 0
        while done < len(view):
            count = stream.readinto(view[done:])
            if not count:
                raise OSError(f"{tensor.file} ended early")
            done += count
    if not data:
        return torch.empty(len(rows), columns, dtype=tensor.dtype)
    return torch.frombuffer(data, dtype=tensor.dtype).view(len(rows), columns)
