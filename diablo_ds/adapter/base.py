"""The frozen base of a layer with a delta, and the door for kinds of base that are not dense.

A linear layer can be a target where a base is known for its class. `torch.nn.Linear` is; another
class, such as one that holds quantised weights, is announced once:

    class Int8Base(FrozenBase):
        def multiply(self, layer, x):
            return x @ (layer.weight.to(x.dtype) * layer.scale).t()  # differentiable by x

    register_base(Int8Linear, Int8Base)

From then on `diablo_ds.adapter.targets.select_targets` finds such layers, and
`diablo_ds.adapter.attach.attach` puts a `DiaBloLinear` in the place of each. It takes over the
layer's parameters, buffers and submodules under their names, so the base keeps its names in state
dicts, checkpoints and under ZeRO-3. A kernel that computes base and delta at once overrides
`multiply_with_delta` as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diablo_ds.adapter.autograd import block_linear, diablo_linear
from diablo_ds.adapter.kernels.compiled_blocks import frozen_linear_op
from diablo_ds.errors import UserError

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes to compute in; narrower floats are those of quantised weights, which have a scale."""


class LinearModule(Protocol):
    """What target selection needs to know of a linear layer."""

    in_features: int
    out_features: int


class FrozenBase:
    """How a frozen linear layer multiplies, once a `DiaBloLinear` has taken its tensors over.

    The base is not trained: no method may give its tensors a gradient. Under ZeRO-3 the tensors are
    gathered inside the layer's forward and, for its backward, again; a base must save the layer's
    parameters for the backward as they are, if at all, never a view or a cast of them.

    Args:
        module: the layer; has ``in_features`` and ``out_features``.
    """

    is_dense = False
    """Whether ``layer.weight`` is a matrix ``[out_features, in_features]`` of floats."""

    def __init__(self, module: nn.Module) -> None:
        widths: Any = module
        self.in_features: int = widths.in_features
        self.out_features: int = widths.out_features
        self.dtype = torch.get_default_dtype()
        """Of inputs, outputs and the delta; to be set by a base that knows better."""

    def multiply(self, layer: Any, x: Tensor) -> Tensor:
        """Return ``X W + b``, ``[..., out_features]``, differentiable by ``x``.

        Args:
            layer: the `DiaBloLinear`, which has the module's tensors under their names.
            x: ``[..., in_features]``.
        """
        raise NotImplementedError

    def multiply_with_delta(self, layer: Any, x: Tensor, x_adapter: Tensor | None) -> Tensor:
        """Return ``X W + b + X_a D``, differentiable by ``x``, ``x_adapter`` and ``layer.delta``.

        Args:
            layer: the `DiaBloLinear`; has ``delta``, which may be of a wider dtype than ``x``, and
                ``delta_path``.
            x: ``[..., in_features]``.
            x_adapter: the same shape, or None where the adapter sees ``x``.
        """
        delta_input = x if x_adapter is None else x_adapter
        return self.multiply(layer, x) + block_linear(
            delta_input, layer.delta.to(delta_input.dtype), path=layer.delta_path
        )


class DenseBase(FrozenBase):
    """A `torch.nn.Linear`: weight ``[out_features, in_features]`` of floats, and maybe a bias.

    Raises:
        UserError: if the weight is not of a float dtype.
    """

    is_dense = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        weight: Any = module.weight
        if weight.dtype not in _DTYPES:
            raise UserError(
                "a linear layer's weight must be of a float dtype; got "
                f"{type(module).__name__} with {weight.dtype}; announce the class with "
                "diablo_ds.adapter.base.register_base"
            )
        self.dtype = weight.dtype

    def multiply(self, layer: Any, x: Tensor) -> Tensor:
        """Return ``X W + b``, bit by bit as the linear layer does."""
        if torch.compiler.is_compiling():
            # The compiler would look into the function that DeepSpeed puts in F.linear's place, or
            # might keep a view of a gathered weight for the backward.
            y: Tensor = frozen_linear_op(x, layer.weight, layer.bias)
            return y
        return F.linear(x, layer.weight, layer.bias)

    def multiply_with_delta(self, layer: Any, x: Tensor, x_adapter: Tensor | None) -> Tensor:
        """Return ``X W + b + X_a D`` by the layer's delta path."""
        delta = layer.delta.to(layer.weight.dtype)
        return diablo_linear(x, layer.weight, layer.bias, delta, x_adapter, path=layer.delta_path)


_BASES: dict[type[nn.Module], Callable[[Any], FrozenBase]] = {nn.Linear: DenseBase}


def register_base(module_class: type[nn.Module], base: Callable[[Any], FrozenBase]) -> None:
    """Announce what the base of layers of a class is, subclasses included.

    Args:
        module_class: its instances have ``in_features`` and ``out_features``.
        base: makes the base of a layer, called with the layer; e.g. a subclass of `FrozenBase`.
    """
    _BASES[module_class] = base


def is_linear(module: nn.Module) -> bool:
    """Return whether a layer can be given a delta: a base is known for its class."""
    return any(kind in _BASES for kind in type(module).__mro__)


def base_of(module: nn.Module) -> FrozenBase:
    """Return the base of a layer, by the most specific class that has one.

    Raises:
        UserError: if none is known.
    """
    for kind in type(module).__mro__:
        if kind in _BASES:
            return _BASES[kind](module)
    raise UserError(
        "a layer with a delta must be linear; got "
        f"{type(module).__name__}; announce the class with diablo_ds.adapter.base.register_base"
    )
