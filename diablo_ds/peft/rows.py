"""Which adapter each row of a mixed batch has."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from diablo_ds.adapter.batched import NO_ADAPTER, stack_deltas
from diablo_ds.errors import UserError

BASE = "__base__"
"""PEFT's name, in a mixed batch, of the rows that get no adapter."""

Stack = tuple[Tensor, Tensor]
"""Deltas of one shape, and each row's choice among them; see `add_chosen_deltas`."""


class Rows(list[str]):
    """The name of an adapter, or "__base__", for each row; with the deltas that a layer needs.

    They are copied side by side once for each layer, however often it is called: for each token of
    a text that is generated.

    Args:
        names: of the rows, in order.
        flattens: whether the model has layers that see ``[batch * tokens, features]``.
    """

    def __init__(self, names: Iterable[str], *, flattens: bool = False) -> None:
        super().__init__(names)
        self._flattens = flattens
        self._stacks: dict[tuple[int, torch.dtype, torch.device], list[Stack]] = {}
        self._by_token: dict[int, Rows] = {}

    def of(self, x: Tensor) -> Rows:
        """Return the rows of a layer's input: these, or one for each token where it is flattened.

        Raises:
            UserError: if the input has another number of rows.
        """
        if len(x) == len(self):
            return self
        if self._flattens and x.dim() == 2 and self and len(x) % len(self) == 0:
            tokens = len(x) // len(self)
            if tokens not in self._by_token:
                self._by_token[tokens] = Rows(name for name in self for _ in range(tokens))
            return self._by_token[tokens]
        raise UserError(
            "Length of `adapter_names` should be the same as the number of inputs, but got "
            f"{len(self)} and {len(x)} respectively."
        )

    def stacks(self, deltas: nn.ParameterDict, y: Tensor) -> list[Stack]:
        """Return a layer's deltas that the rows choose, one stack for each number of blocks.

        Args:
            deltas: those of the layer, by adapter.
            y: its output; the deltas get its dtype and device.
        """
        key = id(deltas), y.dtype, y.device
        if key not in self._stacks:
            self._stacks[key] = list(self._build(deltas, y))
        return self._stacks[key]

    def _build(self, deltas: nn.ParameterDict, y: Tensor) -> Iterable[Stack]:
        by_shape: dict[torch.Size, list[str]] = {}
        for name in sorted(set(self) & set(deltas.keys())):
            by_shape.setdefault(deltas[name].shape, []).append(name)
        for names in by_shape.values():
            stacked = stack_deltas([deltas[name].to(y.device, y.dtype) for name in names])
            index = {name: number for number, name in enumerate(names)}
            choice = [index.get(name, NO_ADAPTER) for name in self]
            yield stacked, torch.tensor(choice, dtype=torch.int64, device=y.device)
