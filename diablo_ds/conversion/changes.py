"""How a stored tensor differs between two checkpoints, read in rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diablo_ds.adapter.blocks import block_parts
from diablo_ds.errors import UserError
from diablo_ds.files.tensor_files import StoredTensor
from diablo_ds.files.tensor_rows import as_matrix_shape, read_rows, row_ranges


class Pair(NamedTuple):
    """A tensor that two checkpoints hold, in the same shape."""

    name: str
    base: StoredTensor
    tuned: StoredTensor

    @property
    def num_bytes(self) -> int:
        """Bytes to read."""
        return self.base.num_bytes + self.tuned.num_bytes

    def differences(self) -> Iterator[tuple[range, Tensor | None]]:
        """Yield ranges of rows, and tuned - base in fp64, or None where all rows are equal.

        Raises:
            UserError: if a number is not finite.
        """
        for rows in row_ranges(self.base):
            old, new = read_rows(self.base, rows), read_rows(self.tuned, rows)
            for values, tensor in ((old, self.base), (new, self.tuned)):
                if values.is_floating_point() and not torch.isfinite(values).all():
                    raise UserError(
                        "checkpoints must hold finite numbers; got NaN or an infinity in "
                        f"{self.name} of {tensor.file}"
                    )
            change = None if torch.equal(old, new) else new.double() - old.double()
            yield rows, change if change is not None and change.any() else None


@dataclass(frozen=True)
class Change:
    """How a tensor changed; false where it did not."""

    out_features: int
    in_features: int
    norm: float
    """Frobenius norm of the change."""
    first: Tensor | None = None
    """Of a weight: ``[out_features]``, the first column that changed of each row; -1 for none."""
    last: Tensor | None = None
    """The last one."""

    def __bool__(self) -> bool:
        return self.norm > 0

    def fits(self, num_blocks: int) -> bool:
        """Return whether the change lies inside the diagonal blocks of a count that is legal."""
        if self.first is None or self.last is None:
            return not self
        block = torch.arange(self.out_features) // (self.out_features // num_blocks)
        in_block = self.in_features // num_blocks
        inside = (self.first // in_block == block) & (self.last // in_block == block)
        return bool((inside | (self.first < 0)).all())


def find_change(pair: Pair, *, with_place: bool) -> Change:
    """Compare two tensors.

    Args:
        pair: the tensors.
        with_place: whether it is recorded where each row changed.

    Raises:
        UserError: if a number is not finite.
    """
    num_rows, num_columns = as_matrix_shape(pair.base.shape)
    squares = 0.0
    first = torch.full((num_rows,), -1) if with_place else None
    last = torch.full((num_rows,), -1) if with_place else None
    for rows, change in pair.differences():
        if change is None:
            continue
        squares += float(change.square().sum())
        if first is not None and last is not None:
            is_changed = change != 0
            has_changed = is_changed.any(dim=1)
            here = slice(rows.start, rows.stop)
            left = is_changed.int().argmax(dim=1)
            right = num_columns - 1 - is_changed.flip(1).int().argmax(dim=1)
            first[here] = torch.where(has_changed, left, -1)
            last[here] = torch.where(has_changed, right, -1)
    return Change(num_rows, num_columns, math.sqrt(squares), first, last)


def take_blocks(pair: Pair, num_blocks: int) -> tuple[Tensor, float]:
    """Return the diagonal blocks of the change of a weight, and the norm of all that is outside.

    Args:
        pair: weights ``[out_features, in_features]``.
        num_blocks: block count; divides both widths.

    Returns:
        Blocks ``[num_blocks, in_block, out_block]`` in fp64, and the Frobenius norm.
    """
    out_features, in_features = pair.base.shape
    in_block, out_block = in_features // num_blocks, out_features // num_blocks
    blocks = torch.zeros(num_blocks, in_block, out_block, dtype=torch.float64)
    outside = 0.0
    for rows, change in pair.differences():
        if change is None:
            continue
        for part in block_parts(rows, in_block, out_block):
            inside = change[part.rows, part.columns]
            blocks[part.block][:, part.outputs] = inside.t()
            inside.zero_()
        outside += float(change.square().sum())
    return blocks, math.sqrt(outside)
