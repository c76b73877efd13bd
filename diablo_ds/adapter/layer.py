"""DiaBloLinear: a frozen linear layer that owns its trainable block-diagonal delta."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diablo_ds.adapter.kernels.compiled_blocks  # noqa: F401  operators for torch.compile
from diablo_ds.adapter.blocks import (
    MERGED_PATHS,
    PATHS,
    delta_shape,
    diablo_linear,
    diagonal_blocks,
)
from diablo_ds.errors import UserError

DELTA_PATHS = PATHS


def resolve_delta_path(
    setting: str, dtype: torch.dtype, dropout: float, device_type: str = "cpu"
) -> str:
    """Return "merged", "prefilled" or "fused" for "auto", and any other setting as it is.

    In half precision on a GPU prefilled is the fastest of those that round the delta for itself
    (benchmarks/results has the figures), but for Triton's, which gain half a percent more.
    On a CPU merged is faster than fused, and in fp32 equal up to rounding. In bf16 a single product
    gives no reason to prefer one: measured against fp64, the error of the output is 0.0017 merged
    and 0.0017 to 0.0024 fused, for deltas of 0.1 % to 100 % of the weight. They differ in what is
    rounded: merged, the delta as it acts is off by 80 % of its norm where it is 0.1 % of the
    weight, by 16 % at 1 % and by 1.7 % at 10 %; fused, the output is rounded once more. What either
    does over many steps has not been studied. Until it is, merged is taken in half precision only
    where it was asked for, and so are the other paths.
    """
    if setting != "auto":
        return setting
    if dtype == torch.float32 and not dropout:
        return "merged"
    return "prefilled" if device_type == "cuda" else "fused"


class DiaBloLinear(nn.Linear):
    """Linear layer ``y = x W + b + dropout(x) D`` with frozen ``W``, ``b`` and trainable ``D``.

    ``D`` is block-diagonal and starts at zero, so a new layer computes what its base does. Weight,
    bias and delta belong to one module: the base keeps its parameter names, and ZeRO-3 fetches
    all three together. Works with and without DeepSpeed.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        num_blocks: number of diagonal blocks; must divide both widths.
        bias: whether the base has a bias; it is kept, frozen.
        dropout: share of the adapter's input that is zeroed while training, in [0, 1).
        delta_path: one of `DELTA_PATHS`, see `diablo_ds.adapter.blocks.DiaBloProduct`.
        device: device of the parameters.
        dtype: dtype of weight, bias and delta.

    Raises:
        UserError: if ``num_blocks`` does not divide both widths, or ``dropout`` is out of range.
    """

    delta: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        num_blocks: int,
        bias: bool = True,
        dropout: float = 0.0,
        delta_path: str = "fused",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = delta_shape(num_blocks, in_features, out_features)
        if not 0 <= dropout < 1:
            raise UserError(f"dropout must be in [0, 1); got dropout={dropout}")
        if delta_path not in DELTA_PATHS:
            raise UserError(
                f"delta_path must be one of {', '.join(DELTA_PATHS)}; got delta_path={delta_path!r}"
            )
        if delta_path in MERGED_PATHS and dropout:
            raise UserError(
                f"delta_path {delta_path!r} needs dropout=0, since the adapter sees the base's "
                f"input; got dropout={dropout}; use 'fused'"
            )
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self.num_blocks = num_blocks
        self.dropout = dropout
        self.delta_path = delta_path
        self.merged = False
        self.delta = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))
        self._freeze_base()

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        num_blocks: int,
        dropout: float = 0.0,
        delta_path: str = "fused",
        device: torch.device | str | None = None,
    ) -> DiaBloLinear:
        """Return a layer that takes over the parameters of ``linear``, which may be partitioned.

        Args:
            linear: the base layer; its parameter objects are shared, not copied, and frozen.
            num_blocks: number of diagonal blocks; must divide both widths.
            dropout: share of the adapter's input that is zeroed while training, in [0, 1).
            delta_path: one of `DELTA_PATHS`.
            device: device of the delta; the weight's by default.
        """
        has_bias = linear.bias is not None
        with torch.device("meta"):
            layer = cls(
                linear.in_features,
                linear.out_features,
                num_blocks=num_blocks,
                bias=has_bias,
                dropout=dropout,
                delta_path=delta_path,
                dtype=linear.weight.dtype,
            )
        layer.weight, layer.bias = linear.weight, linear.bias
        # Not zeros_like: a partitioned weight's own shape is [0].
        delta = torch.zeros(
            layer.delta.shape, dtype=linear.weight.dtype, device=device or linear.weight.device
        )
        layer.delta = nn.Parameter(delta)
        layer._freeze_base()
        return layer.train(linear.training)

    def _freeze_base(self) -> None:
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[..., in_features]`` to ``[..., out_features]``."""
        if self.merged:
            return F.linear(input, self.weight, self.bias)
        x_adapter = None
        if self.dropout and self.training:
            x_adapter = F.dropout(input, self.dropout)
        return diablo_linear(
            input, self.weight, self.bias, self.delta, x_adapter, path=self.delta_path
        )

    @torch.no_grad()
    def merge(self) -> None:
        """Add the delta to the base weight in place; the forward then uses the weight alone."""
        if not self.merged:
            diagonal_blocks(self.weight, self.num_blocks).add_(self.delta)
            self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Undo `merge`, up to the rounding of the weight's dtype."""
        if self.merged:
            diagonal_blocks(self.weight, self.num_blocks).sub_(self.delta)
            self.merged = False

    def extra_repr(self) -> str:
        """Describe the layer in ``print(model)``."""
        own = f"num_blocks={self.num_blocks}, dropout={self.dropout}, {self.delta_path}"
        return f"{super().extra_repr()}, {own}"


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
