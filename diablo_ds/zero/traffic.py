"""Bytes that DeepSpeed's collectives move in a step, by kind and by the size of the group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from diablo_ds.zero.private.communication import communication_backend

# Method of DeepSpeed's backend: name and position of the argument that holds the full tensor, or
# all parts of it.
_FULL_ARGUMENT = {
    "all_gather_into_tensor": ("output_tensor", 0),
    "all_gather": ("tensor_list", 0),
    "all_gather_coalesced": ("output_tensors", 0),
    "reduce_scatter_tensor": ("input_tensor", 1),
    "reduce_scatter": ("input_list", 1),
    "all_reduce": ("tensor", 0),
    "all_reduce_coalesced": ("tensors", 0),
    "reduce": ("tensor", 0),
    "broadcast": ("tensor", 0),
}
BASE_GATHERS = "base gathers"
DELTA_GRADIENTS = "delta gradients"
DELTA_GATHERS = "delta gathers"
NORMS = "norms and flags"
_SMALL_BYTES = 32
"""Up to this size it is a norm, a loss scale or a flag."""


class Collective(NamedTuple):
    """One kind of collective."""

    kind: str
    group_size: int
    """Ranks that take part."""


class Traffic:
    """Calls and bytes by kind of collective.

    Bytes are of the full tensor, as it is after a gather or before a scatter. In a ring each rank
    receives ``(g - 1) / g`` of it for a gather or a scatter, and twice that for an all-reduce.
    """

    def __init__(self) -> None:
        self.calls: Counter[Collective] = Counter()
        self.bytes: Counter[Collective] = Counter()

    def add(self, method: str, *, in_update: bool, group_size: int, num_bytes: int) -> None:
        """Count one call of a backend's method; a rank alone in its group sends nothing."""
        if group_size == 1:
            return
        collective = Collective(_kind(method, in_update, num_bytes), group_size)
        self.calls[collective] += 1
        self.bytes[collective] += num_bytes

    def clear(self) -> None:
        """Count from 0 again."""
        self.calls.clear()
        self.bytes.clear()

    def by_kind(self) -> dict[str, int]:
        """Return the bytes of each kind, in groups of all sizes together."""
        found: Counter[str] = Counter()
        for collective, num_bytes in self.bytes.items():
            found[collective.kind] += num_bytes
        return dict(found)

    def table(self) -> str:
        """Return lines of text, most bytes first."""
        lines = [
            f"  {collective.kind:16} {num_bytes / 1e6:12,.3f} MB in {self.calls[collective]:5} "
            f"calls among {collective.group_size} ranks"
            for collective, num_bytes in self.bytes.most_common()
        ]
        return "\n".join(lines) or "  nothing is sent"


def _kind(method: str, in_update: bool, num_bytes: int) -> str:
    if num_bytes <= _SMALL_BYTES or method == "broadcast":
        return NORMS
    if "gather" in method:
        return DELTA_GATHERS if in_update else BASE_GATHERS
    return DELTA_GRADIENTS


_is_updating = False


@contextmanager
def updating() -> Iterator[None]:
    """Mark the optimizer's update: what is gathered in it are deltas, outside it the base."""
    global _is_updating  # of the process, as DeepSpeed's backend is
    _is_updating = True
    try:
        yield
    finally:
        _is_updating = False


def is_updating() -> bool:
    """Return whether the optimizer's update is on."""
    return _is_updating


@contextmanager
def counting_traffic() -> Iterator[Traffic]:
    """Count DeepSpeed's collectives while this is entered; nothing else changes."""
    traffic = Traffic()
    with wrapping_collectives(lambda name, method: _counted(name, method, traffic)):
        yield traffic


@contextmanager
def wrapping_collectives(
    wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]],
) -> Iterator[None]:
    """Put something around DeepSpeed's collectives while this is entered; may be nested.

    Args:
        wrap: gets the name of a backend's method and the method, and returns what is called
            instead.
    """
    backend = communication_backend()
    outer = {name: vars(backend)[name] for name in _FULL_ARGUMENT if name in vars(backend)}
    wrapped = [name for name in _FULL_ARGUMENT if hasattr(backend, name)]
    for name in wrapped:
        setattr(backend, name, wrap(name, getattr(backend, name)))
    try:
        yield
    finally:
        for name in wrapped:
            if name in outer:
                setattr(backend, name, outer[name])
            else:
                delattr(backend, name)  # the class's own method shows again


def _counted(name: str, method: Callable[..., Any], traffic: Traffic) -> Callable[..., Any]:
    backend = communication_backend()
    argument, position = _FULL_ARGUMENT[name]

    def counted(*args: Any, **kwargs: Any) -> Any:
        full = kwargs[argument] if argument in kwargs else args[position]
        tensors: list[Tensor] = [full] if isinstance(full, Tensor) else list(full)
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        group_size = backend.get_world_size(group=kwargs.get("group"))
        traffic.add(name, in_update=_is_updating, group_size=group_size, num_bytes=num_bytes)
        return method(*args, **kwargs)

    return counted
