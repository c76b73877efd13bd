"""DiaBloLinear: a frozen linear layer that owns its trainable block-diagonal delta."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diablo_ds.adapter.base import base_of
from diablo_ds.adapter.blocks import delta_shape, diagonal_blocks
from diablo_ds.adapter.paths import check_delta_path
from diablo_ds.errors import UserError


class DiaBloLinear(nn.Module):
    """Linear layer ``y = x W + b + dropout(x) D`` with frozen ``W``, ``b`` and trainable ``D``.

    ``D`` is block-diagonal and starts at zero, so a new layer computes what its base does. The
    tensors of the base and the delta belong to one module: the base keeps its parameter names, and
    ZeRO-3 fetches all together. Works with and without DeepSpeed.

    Args:
        module: the base layer, of a class that `diablo_ds.adapter.base` knows; its parameters,
            partitioned or not, are shared, not copied, and frozen.
        num_blocks: number of diagonal blocks; must divide both widths.
        dropout: share of the adapter's input that is zeroed while training, in [0, 1).
        delta_path: one of `diablo_ds.adapter.paths.DELTA_PATHS`.
        device: device of the delta; that of the base's first tensor by default.
        delta_dtype: dtype of the delta, which is cast to the base's for the product; the base's by
            default.

    Raises:
        UserError: if the module has no known base, ``num_blocks`` does not divide both widths,
            ``dropout`` is out of range, or the base cannot use ``delta_path``.
    """

    delta: nn.Parameter

    def __init__(
        self,
        module: nn.Module,
        *,
        num_blocks: int,
        dropout: float = 0.0,
        delta_path: str = "fused",
        device: torch.device | str | None = None,
        delta_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.base = base_of(module)
        self.in_features, self.out_features = self.base.in_features, self.base.out_features
        shape = delta_shape(num_blocks, self.in_features, self.out_features)
        if not 0 <= dropout < 1:
            raise UserError(f"dropout must be in [0, 1); got dropout={dropout}")
        check_delta_path(delta_path, dropout=dropout, is_dense=self.base.is_dense)
        self.num_blocks = num_blocks
        self.dropout = dropout
        self.delta_path = delta_path
        self.is_enabled = True
        """Whether the delta takes part; see `diablo_ds.adapter.attach.without_deltas`."""
        self.is_merged = False
        """Whether the delta is part of the base weight; see `merge`."""
        self._take_over(module)
        self._base_module = (module,)  # in a tuple it is no submodule
        if device is None:
            device = next((t.device for t in (*self.parameters(), *self.buffers())), None)
        # Not zeros_like: a partitioned weight's own shape is [0].
        dtype = self.base.dtype if delta_dtype is None else delta_dtype
        self.delta = nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))
        self.train(module.training)

    def _take_over(self, module: nn.Module) -> None:
        """Register the module's tensors and submodules under their names, frozen."""
        for name, parameter in module._parameters.items():
            self.register_parameter(name, parameter)
        for name, buffer in module._buffers.items():
            is_saved = name not in module._non_persistent_buffers_set
            self.register_buffer(name, buffer, persistent=is_saved)
        for name, child in module.named_children():
            self.add_module(name, child)
        self.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[..., in_features]`` to ``[..., out_features]``."""
        if self.is_merged or not self.is_enabled:
            return self.base.multiply(self, input)
        x_adapter = None
        if self.dropout and self.training:
            x_adapter = F.dropout(input, self.dropout)
        return self.base.multiply_with_delta(self, input, x_adapter)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the delta to the base weight in place; the forward then uses the weight alone.

        Raises:
            UserError: if the base has no dense weight.
        """
        if not self.is_merged:
            self._base_blocks().add_(self.delta)
            self.is_merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Undo `merge`, up to the rounding of the weight's dtype."""
        if self.is_merged:
            self._base_blocks().sub_(self.delta)
            self.is_merged = False

    def _base_blocks(self) -> Tensor:
        if not self.base.is_dense:
            raise UserError(
                "merge needs a base whose weight is a dense matrix of floats; got "
                f"{type(self.base).__name__}"
            )
        weight: Any = self.weight
        return diagonal_blocks(weight, self.num_blocks)

    def release(self) -> nn.Module:
        """Return the base layer that this one was made from, with the tensors it has now."""
        (module,) = self._base_module
        module._parameters.update({name: self._parameters[name] for name in module._parameters})
        module._buffers.update({name: self._buffers[name] for name in module._buffers})
        module._modules.update({name: self._modules[name] for name in module._modules})
        return module.train(self.training)

    def extra_repr(self) -> str:
        """Describe the layer in ``print(model)``."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"num_blocks={self.num_blocks}, dropout={self.dropout}, {self.delta_path}, "
            f"base={type(self.base).__name__}"
        )


def delta_shapes(
    model: nn.Module, num_blocks: Mapping[str, int]
) -> dict[str, tuple[int, int, int]]:
    """Return the shapes that the deltas of a model's layers have or would have.

    Args:
        model: a model with or without deltas.
        num_blocks: block count by the full module name of the layer.

    Returns:
        ``(num_blocks, in_block, out_block)`` by parameter name.
    """
    shapes = {}
    for name, count in num_blocks.items():
        layer: Any = model.get_submodule(name)
        shapes[f"{name}.delta"] = (count, layer.in_features // count, layer.out_features // count)
    return shapes
