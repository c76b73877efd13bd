"""Writing a new file: bytes of the base as they are, and weights with their deltas added.

Nothing is mapped and no tensor is held in full: what is not changed is copied by the kernel, the
rest passes through a buffer of a few megabytes in pieces of rows.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from diablo_ds.conversion.merging.deltas import StoredDeltas
from diablo_ds.conversion.merging.plan import PlannedShard, PlannedTensor
from diablo_ds.conversion.merging.rounding import Rounding
from diablo_ds.conversion.neighbours import round_stochastically
from diablo_ds.errors import UserError
from diablo_ds.files import owned

_PIECE_BYTES = 2**20
"""Bytes of the base read at once: so few that they are still in a core's cache when written."""
_COPY_BYTES = 64 * 2**20
"""Bytes that the kernel copies at once, between two updates of the progress bar."""
_NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


def write_shard(
    shard: PlannedShard,
    target: Path,
    deltas: StoredDeltas,
    progress: Callable[[int], object],
    *,
    is_stochastic: bool = False,
) -> dict[str, Rounding]:
    """Write a file of the merged model; it is not synced.

    Args:
        shard: what to write.
        target: the new file.
        deltas: of the adapter.
        progress: called with numbers of bytes that were written.
        is_stochastic: round sums at random, the same numbers whenever the file is written anew.

    Returns:
        What rounding did, by layer.

    Raises:
        OSError: if the disk is full, or a file of the base cannot be read or ends early.
        UserError: if a merged weight does not fit in the dtype of the file.
    """
    found: dict[str, Rounding] = {}
    source = _Source()
    try:
        with owned.open_owned(target, "wb", buffering=0) as out:
            _write(out, memoryview(shard.header))
            progress(len(shard.header))
            for run in _runs(shard.tensors):
                first = run[0]
                source.seek(first.source.file, first.source.offset)
                if first.is_copied:
                    num_bytes = sum(tensor.num_bytes for tensor in run)
                    _copy(source, out, num_bytes, progress)
                elif first.layer:
                    generator = _generator(first.name) if is_stochastic else None
                    found[first.layer] = _merge(source, first, deltas, out, progress, generator)
                else:
                    _convert(source, first, out, progress)
    finally:
        source.close()
    return found


class _Source:
    """The file of the base that is being read, and the buffer that its parts are read into.

    A new buffer for each part would cost as much as the copying: the system clears its pages.
    """

    def __init__(self) -> None:
        self.file: Path | None = None
        self.stream: Any = None
        self._buffer = torch.empty(_PIECE_BYTES, dtype=torch.uint8)

    def seek(self, file: Path, offset: int) -> None:
        """Go to a byte of a file."""
        if file != self.file:
            self.close()
            self.file, self.stream = file, file.open("rb", buffering=0)
        self.stream.seek(offset)

    def read(self, count: int) -> Tensor:
        """Return the next bytes, ``[count]``; valid until the next call."""
        if len(self._buffer) < count:
            self._buffer = torch.empty(count, dtype=torch.uint8)
        raw = self._buffer[:count]
        view, done = raw.numpy().data, 0
        while done < count:
            read = self.stream.readinto(view[done:])
            if not read:
                raise OSError(f"{self.file} ended early; the base must not change while it is read")
            done += read
        return raw

    def close(self) -> None:
        """Close the file."""
        if self.stream is not None:
            self.stream.close()
            self.file = self.stream = None


def _runs(tensors: Sequence[PlannedTensor]) -> Iterator[list[PlannedTensor]]:
    """Yield neighbours whose bytes are copied together; any other tensor is alone."""
    run: list[PlannedTensor] = []
    for tensor in tensors:
        if run and not (
            tensor.is_copied
            and run[-1].is_copied
            and tensor.source.file == run[-1].source.file
            and tensor.source.offset == run[-1].source.offset + run[-1].source.num_bytes
        ):
            yield run
            run = []
        run.append(tensor)
    if run:
        yield run


# --- bytes ---------------------------------------------------------------------------------------


def _copy(source: _Source, out: BinaryIO, count: int, progress: Callable[[int], object]) -> None:
    """Append bytes of one file to another, by the kernel where the file systems allow it."""
    by_kernel = hasattr(os, "copy_file_range")
    while count:
        done = 0
        if by_kernel:
            try:
                done = os.copy_file_range(
                    source.stream.fileno(), out.fileno(), min(count, _COPY_BYTES)
                )
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY:
                    raise
        if not done:  # some file systems copy nothing and say so in this way
            by_kernel = False
            part = source.read(min(count, _PIECE_BYTES))
            _write(out, part.numpy().data)
            done = len(part)
        count -= done
        progress(done)


def _write(out: BinaryIO, data: memoryview) -> None:
    while data:
        data = data[out.write(data) :]


def _write_tensor(out: BinaryIO, tensor: Tensor, progress: Callable[[int], object]) -> None:
    raw = tensor.contiguous().view(-1).view(torch.uint8)
    _write(out, raw.numpy().data)
    progress(len(raw))


# --- numbers -------------------------------------------------------------------------------------


def _convert(
    source: _Source, tensor: PlannedTensor, out: BinaryIO, progress: Callable[[int], object]
) -> None:
    """Append a tensor in another dtype."""
    old = tensor.source.dtype
    step = _PIECE_BYTES // old.itemsize
    for start in range(0, tensor.source.num_elements, step):
        count = min(step, tensor.source.num_elements - start)
        values = source.read(count * old.itemsize).view(old)
        new = values.to(tensor.dtype)
        if tensor.dtype == torch.float16:
            _check_fits(values, new, tensor)
        _write_tensor(out, new, progress)


@dataclass(frozen=True)
class _Piece:
    """Rows of a weight: some of its blocks in full, or rows of a single block."""

    first_row: int
    num_rows: int
    first_block: int
    num_blocks: int
    first_out: int
    """The first of the rows inside its block; 0 where blocks are taken in full."""


def _pieces(num_blocks: int, out_block: int, max_rows: int) -> Iterator[_Piece]:
    if out_block <= max_rows:
        step = max_rows // out_block
        for block in range(0, num_blocks, step):
            count = min(step, num_blocks - block)
            yield _Piece(block * out_block, count * out_block, block, count, 0)
        return
    for block in range(num_blocks):
        for row in range(0, out_block, max_rows):
            count = min(max_rows, out_block - row)
            yield _Piece(block * out_block + row, count, block, 1, row)


def _merge(
    source: _Source,
    tensor: PlannedTensor,
    deltas: StoredDeltas,
    out: BinaryIO,
    progress: Callable[[int], object],
    generator: torch.Generator | None,
) -> Rounding:
    """Append a weight with its delta added: summed in fp32 and rounded once.

    To the nearest number, or at random where there is a generator.
    """
    num_blocks, in_block, out_block = deltas.shape(tensor.layer)
    in_features, old = num_blocks * in_block, tensor.source.dtype
    exact = torch.promote_types(old, torch.float32)  # fp64 for a base in fp64
    max_rows = max(1, _PIECE_BYTES // (in_features * old.itemsize))
    rounding = Rounding()
    delta, block = torch.empty(0), -1
    for piece in _pieces(num_blocks, out_block, max_rows):
        if piece.first_block != block:
            block = piece.first_block
            delta = deltas.read(tensor.layer, block, block + piece.num_blocks).to(exact)
            delta = delta.transpose(1, 2).contiguous()  # [blocks, out_block, in_block]
        raw = source.read(piece.num_rows * in_features * old.itemsize)
        rows = raw.view(old)  # [num_rows * in_features]
        new = rows.to(tensor.dtype)
        base = _blocks(rows, piece, in_block, in_features).to(exact)
        added = delta[:, piece.first_out : piece.first_out + base.shape[1]]
        merged = base + added
        stored = _round(merged, tensor.dtype, generator)
        _check_fits(merged, stored, tensor)
        rounding.add(base, added, merged, stored)  # before `base`, perhaps a view, is overwritten
        _blocks(new, piece, in_block, in_features).copy_(stored)
        _write_tensor(out, new, progress)
    return rounding


def _round(exact: Tensor, dtype: torch.dtype, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return exact.to(dtype)
    return round_stochastically(exact, dtype, generator)


def _generator(tensor: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(tensor.encode()))


def _blocks(rows: Tensor, piece: _Piece, in_block: int, in_features: int) -> Tensor:
    """Return a view of the parts of diagonal blocks that lie in some rows of a weight.

    Args:
        rows: ``[num_rows * in_features]``, contiguous.
        piece: which rows.
        in_block: columns of a block.
        in_features: columns of the weight.

    Returns:
        ``[num_blocks, rows of each, in_block]``, as in a PyTorch weight: the transpose of a delta.
    """
    per_block = piece.num_rows // piece.num_blocks
    return rows.as_strided(
        (piece.num_blocks, per_block, in_block),
        (per_block * in_features + in_block, in_features, 1),
        piece.first_block * in_block,
    )


def _check_fits(exact: Tensor, stored: Tensor, tensor: PlannedTensor) -> None:
    if bool(stored.isfinite().all()):
        return
    dtype = str(tensor.dtype).removeprefix("torch.")
    if not bool(exact.isfinite().all()):
        raise UserError(
            f"weights must be finite; got NaN or infinite ones in {tensor.name} of the base, "
            f"{tensor.source.file}"
        )
    raise UserError(
        f"weights must fit in the dtype of the new files; got {float(exact.abs().max()):.4g} in "
        f"{tensor.name}, too large for {dtype}; give --dtype fp32 or bf16"
    )
