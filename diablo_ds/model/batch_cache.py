"""What transformers caches of a batch, with rows that leave it and rows that join it.

All rows of a cache end in the same column, so that a forward adds one column to each, and shorter
rows are padded on the left. `DynamicCache` copies everything in each step; here layers of its
plain kind write into room that was made beforehand.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_LEAST_ROOM = 64
"""Columns that a full buffer is made longer by."""


@lru_cache(maxsize=1)
def _roomy_layer() -> Any:
    """Return the class of layers with room; transformers is imported where it is needed."""
    from transformers.cache_utils import DynamicLayer

    class RoomyLayer(DynamicLayer):  # type: ignore[misc]
        """A cache's layer that writes new columns into buffers, of which it returns views.

        Args:
            keys: ``[batch, heads, columns, width]``, with room behind the first ``stop`` columns.
            values: the same, maybe of another width.
            stop: columns in use.
        """

        def __init__(self, keys: Tensor, values: Tensor, stop: int) -> None:
            super().__init__()
            self.device, self.dtype, self.is_initialized = keys.device, keys.dtype, True
            self._fill(keys, values, stop)

        def _fill(self, keys: Tensor, values: Tensor, stop: int) -> None:
            self._buffers, self._start, self._stop = (keys, values), 0, stop
            self._show()

        def _show(self) -> None:
            self.keys, self.values = (x[:, :, self._start : self._stop] for x in self._buffers)

        def update(
            self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any
        ) -> tuple[Tensor, Tensor]:
            added = key_states.shape[2]
            if self._stop + added > self._buffers[0].shape[2]:
                width = self._stop - self._start
                room = max(_LEAST_ROOM, width // 2, added)
                keys, values = (_right_aligned([x], room) for x in (self.keys, self.values))
                self._fill(keys, values, width)
            for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
                buffer[:, :, self._stop : self._stop + added] = states
            self._stop += added
            self._show()
            return self.keys, self.values

        def reorder_cache(self, beam_idx: Tensor) -> None:
            self._fill(self.keys[beam_idx], self.values[beam_idx], self._stop - self._start)

        def keep_rows(self, order: Sequence[int]) -> None:
            """Keep some rows; moves only those that fill a gap."""
            for buffer in self._buffers:
                for place, row in enumerate(order):
                    if place != row:
                        buffer[place] = buffer[row]
            keys, values = (buffer[: len(order)] for buffer in self._buffers)
            self._buffers = keys, values
            self._show()

        def drop_columns(self, count: int) -> None:
            """Drop the first columns."""
            self._start += count
            self._show()

    return RoomyLayer


def make_room(cache: Any, room: int) -> None:
    """Let a cache's layers of the plain kind take columns without being copied.

    Args:
        cache: transformers' cache.
        room: columns that will be added.
    """
    from transformers.cache_utils import DynamicLayer

    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[index] = _roomy([layer.keys], [layer.values], room)


def _roomy(keys: Sequence[Tensor], values: Sequence[Tensor], room: int) -> Any:
    buffers = _right_aligned(keys, room), _right_aligned(values, room)
    return _roomy_layer()(*buffers, buffers[0].shape[2] - room)


def can_join(cache: Any) -> bool:
    """Return whether rows of other lengths can join a cache: all kinds of its layers are known."""
    return all(_kind(layer) for layer in getattr(cache, "layers", [None]))


def _kind(layer: Any) -> str:
    from transformers.cache_utils import (
        DummyLayer,
        DynamicLayer,
        DynamicSlidingWindowLayer,
        LinearAttentionLayer,
    )

    kinds = {
        DynamicLayer: "plain",
        _roomy_layer(): "plain",
        DynamicSlidingWindowLayer: "sliding",
        LinearAttentionLayer: "linear",
        DummyLayer: "empty",
    }
    return kinds.get(type(layer), "")


def gaps_filled(stays: Sequence[bool]) -> list[int]:
    """Return which row each place gets when rows leave: the last ones that stay fill the gaps."""
    num_left = sum(stays)
    movers = iter([row for row in range(len(stays) - 1, num_left - 1, -1) if stays[row]])
    return [row if stays[row] else next(movers) for row in range(num_left)]


def keep_rows(cache: Any, order: Sequence[int]) -> None:
    """Keep some rows of a cache, in the order that `gaps_filled` returns."""
    index: Tensor | None = None
    for layer in cache.layers:
        if isinstance(layer, _roomy_layer()):
            layer.keep_rows(order)
            continue
        if _kind(layer) != "empty":
            index = torch.tensor(order, device=layer.device) if index is None else index
            layer.reorder_cache(index)


def with_rows(cache: Any, rows: Tensor) -> Any:
    """Return a cache of other rows, each a copy of one of a cache's, which stays as it is.

    Args:
        cache: transformers' cache, without room.
        rows: index of each, ``[batch]``, int64.
    """
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in other.layers:
        for name, value in vars(layer).items():
            if isinstance(value, dict):
                setattr(layer, name, dict(value))
    other.reorder_cache(rows)
    return other


def drop_columns(cache: Any, count: int) -> None:
    """Drop the first columns of a cache, which are padding in all rows."""
    if not count:
        return
    for layer in cache.layers:
        kind = _kind(layer)
        if isinstance(layer, _roomy_layer()):
            layer.drop_columns(count)
        elif kind == "plain":
            layer.keys, layer.values = layer.keys[:, :, count:], layer.values[:, :, count:]
        elif kind == "sliding":
            layer.cumulative_length -= count
            stored = min(layer.cumulative_length, layer.sliding_window - 1)
            layer.keys = layer.keys[:, :, layer.keys.shape[2] - stored :]
            layer.values = layer.values[:, :, layer.values.shape[2] - stored :]


def join(caches: Sequence[Any], room: int) -> Any:
    """Return one cache with the rows of several, each padded on the left to the widest.

    Args:
        caches: of one model, with layers that `can_join` knows; the first is changed, and returned.
        room: columns that will be added.
    """
    first = caches[0]
    for index, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        kind = _kind(layers[0])
        if kind == "linear":
            _join_states(layers)
        if kind not in ("plain", "sliding") or not layers[0].is_initialized:
            continue
        if kind == "sliding":
            layers[0].cumulative_length = max(layer.cumulative_length for layer in layers)
            layers[0].keys = _right_aligned([layer.keys for layer in layers], 0)
            layers[0].values = _right_aligned([layer.values for layer in layers], 0)
            continue
        keys, values = [layer.keys for layer in layers], [layer.values for layer in layers]
        first.layers[index] = _roomy(keys, values, room)
    return first


def _right_aligned(parts: Sequence[Tensor], room: int) -> Tensor:
    """Join ``[batch, heads, columns, width]`` along the batch; what is padded on the left is 0."""
    columns = max(part.shape[2] for part in parts)
    _, heads, _, width = parts[0].shape
    rows = sum(part.shape[0] for part in parts)
    whole = parts[0].new_empty(rows, heads, columns + room, width)
    start = 0
    for part in parts:
        stop, padding = start + part.shape[0], columns - part.shape[2]
        whole[start:stop, :, :padding] = 0  # what is masked must be finite: it is multiplied by 0
        whole[start:stop, :, padding:columns] = part
        start = stop
    return whole


def _join_states(layers: Sequence[Any]) -> None:
    for states in ("conv_states", "recurrent_states"):
        own = getattr(layers[0], states)
        for number in own:
            parts = [getattr(layer, states)[number] for layer in layers]
            if all(isinstance(part, Tensor) for part in parts):
                own[number] = torch.cat(parts)


def cache_bytes(cache: Any) -> int:
    """Return the bytes of a cache's tensors."""
    total = 0
    for layer in cache.layers:
        states = [getattr(layer, "keys", None), getattr(layer, "values", None)]
        for name in ("conv_states", "recurrent_states"):
            states += list(getattr(layer, name, {}).values())
        total += sum(x.numel() * x.element_size() for x in states if isinstance(x, Tensor))
    return total
