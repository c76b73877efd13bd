"""Activation memory of a compiled decoder layer: what the backward computes again by itself.

`torch.compile` keeps of a layer what matrix products and attention read in the backward, and what
they wrote. Elementwise results between them, such as an activation function's output or a norm's
fp32 copy of its input, are computed again where the backward needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_FUSED = ("_to_copy", "clone", "cat", "mean", "sum")
"""Operations beside the elementwise ones that the compiler fuses with their neighbours."""


class Operations(TorchDispatchMode):
    """Records which tensors elementwise operations make, and which ones others read.

    Tensors are known by their storage, so a view counts as what it shows.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made_of: dict[int, list[Tensor]] = {}
        """Inputs of the elementwise operation that made a tensor, by the tensor's identity."""
        self.read: set[int] = set()
        """Identities of what matrix products and attention read."""
        self._alive: list[Tensor] = []  # so that no identity is used again

    def start(self) -> None:
        """Forget what was recorded: a layer is compiled by itself."""
        self.made_of.clear()
        self.read.clear()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Record one operation."""
        output = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        seen = {identity(tensor) for tensor in inputs}
        made = [tensor for tensor in outputs if identity(tensor) not in seen]
        self._alive += made
        if torch.Tag.pointwise in func.tags or func._opname in _FUSED:
            self.made_of.update((identity(tensor), inputs) for tensor in made)
        elif made:
            self.read |= seen
        return output

    def read_by_attention(self, *tensors: Tensor) -> None:
        """Record what an attention kernel reads, where a stand-in runs instead."""
        self.read.update(map(identity, tensors))

    def kept_bytes(self, saved: Sequence[Tensor], is_known: Callable[[Tensor], bool]) -> int:
        """Return the bytes of a layer's saved tensors that its compiled form keeps.

        Args:
            saved: what autograd saves of the layer, each storage once, its input included.
            is_known: whether a tensor is the model's own.
        """
        kept = {identity(t): t for t in saved if not self._is_computed_again(t)}
        for tensor in saved:
            if identity(tensor) in kept:
                continue
            origins = {
                key: origin
                for key, origin in self._origins(tensor).items()
                if key not in kept and not is_known(origin)
            }
            if sum(map(num_bytes, origins.values())) < num_bytes(tensor):
                kept |= origins
            else:
                kept[identity(tensor)] = tensor
        return sum(map(num_bytes, kept.values()))

    def _is_computed_again(self, tensor: Tensor) -> bool:
        return identity(tensor) in self.made_of and identity(tensor) not in self.read

    def _origins(self, tensor: Tensor) -> dict[int, Tensor]:
        """Return what a tensor is computed from by elementwise operations alone."""
        origins: dict[int, Tensor] = {}
        open_ones, visited = [tensor], set()
        while open_ones:
            each = open_ones.pop()
            if identity(each) in visited:
                continue
            visited.add(identity(each))
            if self._is_computed_again(each):
                open_ones += self.made_of[identity(each)]
            else:
                origins[identity(each)] = each
        return origins


def identity(tensor: Tensor) -> int:
    """Return what is the same for all views of a tensor."""
    number: int = tensor.untyped_storage()._cdata
    return number


def num_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's storage."""
    return tensor.untyped_storage().nbytes()
