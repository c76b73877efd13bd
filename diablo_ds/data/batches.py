"""Rows of examples to micro batches, and which of them a rank gets, given as an int."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diablo_ds.config.run import RunConfig
from diablo_ds.data.labels import IGNORE_LABEL, Example
from diablo_ds.data.masks import EXAMPLES, NO_MASK, PADDING, MaskRule, padding_mask
from diablo_ds.errors import UserError

PAD_TO_MULTIPLE = 8
"""Micro batches are padded to a multiple of at least this many tokens; matrix units like round
sizes."""


class MicroBatch(NamedTuple):
    """What one rank puts through one forward; tensors ``[micro_batch, seq]``, int64.

    Padding is on the right, where no token attends to it under causal attention, so it needs no
    mask and attention runs its fastest kernels. Models for which that does not hold get one, see
    `diablo_ds.model.separation`.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor | None
    """For packed sequences: restarted at 0 in each example, which also keeps attention within
    it."""
    num_tokens: int
    """Tokens without padding."""
    attention_mask: Any = None
    """None for most models, ``[micro_batch, seq]``, ``[micro_batch, 1, seq, seq]``, or a dict of
    such masks by layer type."""
    squared_lengths: int = 0
    """Squares of the examples' lengths in tokens, summed; attention's work is in proportion."""

    def model_inputs(self) -> dict[str, Any]:
        """Return the arguments of a Hugging Face model's forward."""
        optional = {"position_ids": self.position_ids, "attention_mask": self.attention_mask}
        given = {name: value for name, value in optional.items() if value is not None}
        return {"input_ids": self.input_ids, **given}

    def as_one_row(self) -> MicroBatch:
        """Join packed rows into a single one, ``[1, micro_batch * seq]``.

        Variable-length attention takes them in this form. The first token of a row has no loss,
        hence the shift between logits and labels crosses no boundary between rows.

        Raises:
            UserError: if the rows are not packed.
        """
        if self.position_ids is None:
            raise UserError("only packed rows can be joined into one; got no position_ids")
        return self._replace(
            input_ids=self.input_ids.view(1, -1),
            labels=self.labels.view(1, -1),
            position_ids=self.position_ids.view(1, -1),
        )

    def variable_length_inputs(self) -> dict[str, Any]:
        """Return the same arguments for one joined row, with the boundaries of its examples.

        Variable-length attention kernels would otherwise derive the boundaries in every layer, and
        wait for the device each time.
        """
        row = self.as_one_row()
        assert row.position_ids is not None
        (starts,) = torch.nonzero(row.position_ids[0] == 0, as_tuple=True)
        edges = torch.cat([starts, starts.new_tensor([row.input_ids.numel()])]).to(torch.int32)
        longest = int(edges.diff().max())
        return row.model_inputs() | {
            "cu_seq_lens_q": edges,
            "cu_seq_lens_k": edges,
            "max_length_q": longest,
            "max_length_k": longest,
        }


def to_device(inputs: Any, device: torch.device) -> Any:
    """Move the tensors of a forward's arguments, which may be nested, to a device.

    To a GPU they go through pinned memory: a large copy from any other waits for the GPU.
    """
    if isinstance(inputs, Tensor):
        if device.type == "cuda" and inputs.device.type == "cpu":
            inputs = inputs.pin_memory()  # itself where it is pinned
        return inputs.to(device, non_blocking=True)
    return _mapped(lambda value: to_device(value, device), inputs)


def pinned(inputs: Any) -> Any:
    """Return a micro batch whose tensors are in pinned memory."""
    return inputs.pin_memory() if isinstance(inputs, Tensor) else _mapped(pinned, inputs)


def _mapped(function: Callable[[Any], Any], values: Any) -> Any:
    """Apply a function to the items of a micro batch, tuple or dict; return others as they are."""
    if isinstance(values, MicroBatch):
        return MicroBatch(*map(function, values))
    if isinstance(values, tuple):
        return tuple(map(function, values))
    if isinstance(values, dict):
        return {name: function(value) for name, value in values.items()}
    return values


BatchRow = Sequence[Example]
"""The examples of one row of a micro batch: one, several when packed, none in an empty row."""


def collate(
    rows: Sequence[BatchRow],
    *,
    pad_id: int,
    packing: bool = False,
    mask: MaskRule = NO_MASK,
    multiple: int = PAD_TO_MULTIPLE,
    at_most: int = 0,
) -> MicroBatch:
    """Concatenate each row's examples, and pad on the right to a common length.

    Args:
        rows: the examples of each row.
        pad_id: token for padding.
        packing: whether rows may contain several examples.
        mask: which attention mask to add; none by default.
        multiple: the common length is rounded up to a multiple of this.
        at_most: tokens beyond which it is not rounded up; 0 for any.
    """
    lengths = [sum(len(example.input_ids) for example in row) for row in rows]
    width = padded_width(max([*lengths, 1]), multiple, at_most)
    shape = (len(rows), width)
    input_ids, labels = np.full(shape, pad_id), np.full(shape, IGNORE_LABEL)
    positions = np.zeros(shape, np.int64)
    for index, row in enumerate(rows):
        start = 0
        for example in row:
            end = start + len(example.input_ids)
            input_ids[index, start:end] = example.input_ids
            labels[index, start:end] = example.labels
            labels[index, start] = IGNORE_LABEL  # the token before belongs to another example
            positions[index, start:end] = np.arange(end - start)
            start = end
        positions[index, start:] = np.arange(width - start)  # padding is a document of its own
    position_ids = torch.from_numpy(positions)
    attention_mask: Any = None
    if mask.kind == PADDING:
        attention_mask = padding_mask(torch.tensor(lengths).clamp(min=1), width)
    if mask.kind == EXAMPLES:
        attention_mask = mask.for_examples(position_ids)
    return MicroBatch(
        torch.from_numpy(input_ids),
        torch.from_numpy(labels),
        position_ids if packing else None,
        sum(lengths),
        attention_mask,
        sum(len(example.input_ids) ** 2 for row in rows for example in row),
    )


def padded_width(num_tokens: int, multiple: int = PAD_TO_MULTIPLE, at_most: int = 0) -> int:
    """Return a length rounded up to a multiple, but not beyond ``at_most``; 0 for any."""
    width = -(-num_tokens // multiple) * multiple
    return max(num_tokens, min(width, at_most)) if at_most else width


@dataclass(frozen=True)
class Dealer:
    """Deals the sequences of a step out to ranks, the same number of micro batches to each.

    Args:
        run_config: gives the micro batch, in examples or tokens, packing, and the multiple of
            tokens to which micro batches are padded.
        pad_id: token for padding.
        rank: the rank whose micro batches are made.
        world_size: number of ranks.
        mask: which attention mask each micro batch has.
        equal_lengths: whether a micro batch contains only examples of equal length, so that none is
            padded.
    """

    run_config: RunConfig
    pad_id: int
    rank: int
    world_size: int
    mask: MaskRule = NO_MASK
    equal_lengths: bool = False

    def deal(self, sizes: Sequence[int], load: Callable[[int], BatchRow]) -> Iterator[MicroBatch]:
        """Yield this rank's micro batches of rows that are identified by their index.

        Rows of similar size share a micro batch, which means less padding and equal work on all
        ranks. Ranks without a row get an empty one, without a target. Only this rank's rows are
        loaded.

        Args:
            sizes: tokens of each row, or an estimate of them; the same on all ranks.
            load: returns the examples of a row.
        """
        by_size = sorted(range(len(sizes)), key=lambda index: -sizes[index])
        groups = self._groups(by_size, sizes)
        for start in range(0, len(groups), self.world_size):
            mine = groups[start + self.rank] if start + self.rank < len(groups) else []
            yield self._collate([load(index) for index in mine] or [()])

    def largest(self, length: int) -> MicroBatch:
        """Return a micro batch as large as `deal` makes any, every token a target.

        Args:
            length: tokens of the longest row.
        """
        row = Example([self.pad_id] * length, [self.pad_id] * length)
        (rows, *_) = self._groups(range(self._most_rows), [length] * self._most_rows)
        return self._collate([[row]] * len(rows))

    def _collate(self, rows: Sequence[BatchRow]) -> MicroBatch:
        return collate(
            rows,
            pad_id=self.pad_id,
            packing=self.run_config.packing,
            mask=self.mask,
            multiple=1 if self.equal_lengths else self._multiple,
            at_most=self._most,
        )

    def count(self, sizes: Sequence[int]) -> int:
        """Return how many micro batches `deal` yields of rows of these sizes."""
        by_size = sorted(range(len(sizes)), key=lambda index: -sizes[index])
        return -(-len(self._groups(by_size, sizes)) // self.world_size)

    @property
    def _multiple(self) -> int:
        return self.run_config.pad_to_multiple_of or PAD_TO_MULTIPLE

    @property
    def _most_rows(self) -> int:
        """Rows of the largest micro batch at most."""
        return self.run_config.micro_batch or self.run_config.micro_batch_tokens

    @property
    def _most(self) -> int:
        """Tokens beyond which no width is rounded up."""
        return padded_width(self.run_config.max_length)

    def _groups(self, rows: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
        """Cut rows, longest first, into micro batches."""
        groups = []
        start = 0
        while start < len(rows):
            size = self.run_config.micro_batch
            if self.run_config.micro_batch_tokens:
                width = padded_width(sizes[rows[start]], self._multiple, self._most)
                size = max(1, self.run_config.micro_batch_tokens // width)
            if self.equal_lengths:
                size = min(size, self._num_equal(rows, sizes, start))
            groups.append(rows[start : start + size])
            start += size
        return groups

    def _num_equal(self, rows: Sequence[int], sizes: Sequence[int], start: int) -> int:
        """Return the number of consecutive rows from ``start`` that have the same length."""
        if self.run_config.stream:  # its lengths in tokens are not known yet
            return 1
        end = start
        while end < len(rows) and sizes[rows[end]] == sizes[rows[start]]:
            end += 1
        return end - start
