"""Decoder layers that equal one before them need not be run to learn sizes of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, str, type(None))
_PLACE = "layer_idx"
"""By it a layer finds its part of a cache, which training has none of."""


@contextmanager
def skipping_repeated(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Let layers on the meta device that equal an earlier one return a new tensor like their input.

    Their hooks are called as before. Equal are layers with the same modules, parameter shapes and
    plain attributes. A layer whose output is no tensor like its input is always run.

    Args:
        layers: in the order in which they run; the first argument of each is its input.
    """
    is_like: dict[Hashable, bool] = {}
    handles, replaced = [], []
    try:
        for layer in layers:
            kind = _kind(layer)
            if kind in is_like:
                layer.forward = _stand_in(layer.forward, is_like, kind)
                replaced.append(layer)
            else:
                is_like[kind] = False
                handles.append(layer.register_forward_hook(_noting(is_like, kind)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer in replaced:
            del layer.forward


def _kind(layer: nn.Module) -> Hashable:
    return tuple(
        (
            type(module),
            tuple((k, v) for k, v in vars(module).items() if k != _PLACE and type(v) in _PLAIN),
            tuple(
                (name, p.shape, p.dtype, p.requires_grad)
                for name, p in module.named_parameters(recurse=False)
            ),
        )
        for module in layer.modules()
    )


def _noting(is_like: dict[Hashable, bool], kind: Hashable) -> Callable[..., None]:
    def note(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        is_like[kind] = (
            isinstance(output, Tensor)
            and (output.shape, output.dtype) == (args[0].shape, args[0].dtype)
            and output.requires_grad
        )

    return note


def _stand_in(
    forward: Callable[..., Any], is_like: dict[Hashable, bool], kind: Hashable
) -> Callable[..., Any]:
    def run(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not is_like[kind]:
            return forward(hidden, *args, **kwargs)
        return torch.empty_like(hidden).requires_grad_()

    return run
