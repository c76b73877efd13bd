"""A linear layer of a PEFT model, with one delta for each adapter."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from diablo_ds.adapter.autograd import add_block_linear, diablo_linear
from diablo_ds.adapter.base import DenseBase, base_of
from diablo_ds.adapter.batched import add_chosen_deltas
from diablo_ds.adapter.blocks import delta_shape, diagonal_blocks
from diablo_ds.errors import UserError
from diablo_ds.peft.config import DiaBloConfig
from diablo_ds.peft.rows import Rows


class DiaBloTunerLinear(nn.Module, BaseTunerLayer):
    """Linear layer ``y = x W + b + sum of dropout(x) D_a`` over the active adapters ``a``.

    The same product as `diablo_ds.adapter.layer.DiaBloLinear`. A delta is cast to the dtype of the
    layer's input for it, and gets its gradient in its own.

    Args:
        base_layer: of a class that `diablo_ds.adapter.base` knows, or another method's layer around
            such a one.
        adapter_name: the first adapter.
        num_blocks: number of diagonal blocks of its delta.
        config: its config.

    Raises:
        UserError: if the base layer cannot have a delta, or ``num_blocks`` does not divide both of
            its widths.
    """

    adapter_layer_names = ("diablo_delta",)
    other_param_names = ("diablo_dropout",)
    # PEFT's own members, which mypy does not see.
    active_adapters: Any
    get_base_layer: Any
    get_base_weight: Any
    set_adapter: Any
    _move_adapter_to_device_of_base_layer: Any

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, num_blocks: int, config: DiaBloConfig
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.base = base_of(self.get_base_layer())
        self.in_features, self.out_features = self.base.in_features, self.base.out_features
        self.diablo_delta = nn.ParameterDict()
        self.diablo_dropout: dict[str, float] = {}
        self.merged_adapters: list[str] = []
        self._blocks_before: list[Tensor] = []
        """Diagonal blocks of the base weight from before each merge, in order."""
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, num_blocks, config)

    def update_layer(self, adapter_name: str, num_blocks: int, config: DiaBloConfig) -> None:
        """Give an adapter a delta in this layer.

        Args:
            adapter_name: its name.
            num_blocks: number of diagonal blocks.
            config: the adapter's.
        """
        delta = torch.zeros(delta_shape(num_blocks, self.in_features, self.out_features))
        if not config.init_weights:
            bound = 1 / math.sqrt(delta.shape[1])
            delta.uniform_(-bound, bound)
        self.diablo_delta[adapter_name] = nn.Parameter(delta)
        self.diablo_dropout[adapter_name] = config.dropout
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map ``[..., in_features]`` to ``[..., out_features]``.

        Args:
            x: the input.
            args: passed on to the base layer, like further keyword arguments.
            kwargs: ``adapter_names``: an adapter's name, or "__base__", for each row of a batch
                ``[batch, ..., in_features]``.
        """
        names: Sequence[str] | None = kwargs.pop("adapter_names", None)
        rows = None
        if names is not None:
            rows = (names if isinstance(names, Rows) else Rows(names)).of(x)
            if self.merged:
                raise UserError(
                    "Cannot pass `adapter_names` when there are merged adapters, please call "
                    "`unmerge_adapter` first."
                )
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self._base_output(x, *args, **kwargs)
        if rows is not None:
            return self._mixed_batch_forward(x, rows, *args, **kwargs)
        active = [name for name in self.active_adapters if name in self.diablo_delta]
        if self.merged or not active:
            return self._base_output(x, *args, **kwargs)
        if not args and not kwargs and self._can_be_fused(x):
            first, *active = active
            base_layer: Any = self.base_layer
            weight = base_layer.weight
            delta = self.diablo_delta[first].to(weight.dtype)
            y = diablo_linear(x, weight, base_layer.bias, delta, self._dropped(x, first))
        else:
            y = self._base_output(x, *args, **kwargs)
        for name in active:
            dropped = self._dropped(x, name)
            y = add_block_linear(y, x if dropped is None else dropped, self.diablo_delta[name])
        return y

    def _base_output(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.base_layer(x, *args, **kwargs)
        return y

    def _can_be_fused(self, x: Tensor) -> bool:
        """Return whether base and delta can be computed at once, without calling the base layer.

        Not where something else must see that call (hooks, which offloading and ZeRO-3 use, or
        another method's layer) or where the base is trained, too.
        """
        layer: Any = self.base_layer
        if type(self.base) is not DenseBase or type(layer).forward is not nn.Linear.forward:
            return False
        if "forward" in layer.__dict__ or type(layer.weight) not in (nn.Parameter, Tensor):
            return False
        hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks)
        if any(hooks) or layer._backward_pre_hooks:
            return False
        if layer.weight.requires_grad or (layer.bias is not None and layer.bias.requires_grad):
            return False
        same_dtype: bool = x.dtype == layer.weight.dtype
        return same_dtype or torch.is_autocast_enabled(x.device.type)

    def _dropped(self, x: Tensor, name: str) -> Tensor | None:
        """Return what an adapter sees, or None where that is ``x``."""
        share = self.diablo_dropout[name]
        return F.dropout(x, share) if share and self.training else None

    def _mixed_batch_forward(self, x: Tensor, rows: Rows, *args: Any, **kwargs: Any) -> Tensor:
        y = self._base_output(x, *args, **kwargs)
        for deltas, choice in rows.stacks(self.diablo_delta, y):
            y = add_chosen_deltas(y, x, deltas, choice, inplace=not torch.is_grad_enabled())
        return y

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add deltas to the base weight; the forward then uses the weight alone.

        The sum is rounded once to the dtype of the weight. The blocks from before are kept, 1 /
        num_blocks of the weight for each adapter, so that `unmerge` restores them bit by bit.

        Args:
            safe_merge: check that the sum is finite, and change nothing if it is not.
            adapter_names: the adapters; the active ones by default.

        Raises:
            UserError: if the base has no dense weight, or a sum that is checked is not finite.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.diablo_delta:
                continue
            blocks = self._base_blocks(self.diablo_delta[name].shape[0])
            before = blocks.clone()
            blocks.add_(self.diablo_delta[name].to(blocks.device))
            if safe_merge and not torch.isfinite(blocks).all():
                blocks.copy_(before)
                raise _broken(name)
            self.merged_adapters.append(name)
            self._blocks_before.append(before)

    @torch.no_grad()
    def check_merge(self, adapter_names: list[str] | None = None) -> None:
        """Raise UserError if `merge` would make the weight infinite or not a number."""
        for name in self.active_adapters if adapter_names is None else adapter_names:
            if name in self.diablo_delta and not self.merged:
                blocks = self._base_blocks(self.diablo_delta[name].shape[0])
                total = blocks + self.diablo_delta[name].to(blocks.device)
                if not (total.is_meta or torch.isfinite(total.to(blocks.dtype)).all()):
                    raise _broken(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the base weight back as it was before `merge`, bit by bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            self.merged_adapters.pop()
            before = self._blocks_before.pop()
            self._base_blocks(before.shape[0]).copy_(before)

    def _base_blocks(self, num_blocks: int) -> Tensor:
        if not self.base.is_dense:
            raise UserError(
                "merge needs a base whose weight is a dense matrix of floats; got "
                f"{type(self.base).__name__}"
            )
        return diagonal_blocks(self.get_base_weight(), num_blocks)

    @torch.no_grad()
    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return an adapter's delta as a dense matrix ``[out_features, in_features]``."""
        delta: Tensor = self.diablo_delta[adapter]
        weight = delta.new_zeros((self.out_features, self.in_features))
        diagonal_blocks(weight, delta.shape[0]).copy_(delta)
        return weight

    def extra_repr(self) -> str:
        """Describe the layer in ``print(model)``."""
        counts = {name: delta.shape[0] for name, delta in self.diablo_delta.items()}
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"num_blocks={counts}, dropout={self.diablo_dropout}"
        )


def _broken(name: str) -> UserError:
    return UserError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
