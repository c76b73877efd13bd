"""Several adapters served over one base in plain PyTorch, each row of a batch with its own.

    adapters = Adapters(model, {"math": load_adapter(math)[0], "code": load_adapter(code)[0]})
    with adapters.chosen(["math", None, "code"]):
        model.generate(**three_prompts)

The model keeps its layers and weights: inside ``chosen``, hooks add to the outputs of the target
layers what `diablo_ds.adapter.batched.add_chosen_deltas` computes; outside it is the base alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diablo_ds.adapter.base import base_of, is_linear
from diablo_ds.adapter.batched import NO_ADAPTER, add_chosen_deltas, stack_deltas
from diablo_ds.errors import UserError

FLATTENING_TYPES = ("opt",)
"""Types of models whose feed-forward layers see ``[batch * tokens, features]``. Others are not
assumed to do so: in a mixture of experts, a layer sees some of the tokens, in any order."""
_SUFFIX = ".delta"


@dataclass(frozen=True)
class _Stack:
    """Deltas of one layer and one shape, in the dtype and on the device of the layer."""

    module: nn.Module
    names: tuple[str, ...]
    """The adapters that have them."""
    deltas: Tensor
    """``[len(names), num_blocks, in_block, out_block]``."""


class Adapters:
    """Adapters of one model that is not itself trained, for batches in which each row chooses one.

    The adapters may have different target layers and block counts. Their deltas are copied, in the
    dtype of each layer's base and to its device; dropout is not applied.

    Args:
        model: the base model, without deltas.
        adapters: by a name of your choice, an adapter's tensors as
            `diablo_ds.adapter.storage.load_adapter` returns them: by "<layer>.delta",
            ``[num_blocks, in_block, out_block]``.

    Raises:
        UserError: if a tensor's layer is not in the model, not linear or one expert of several,
            its shape does not fit, or it is not finite.
    """

    def __init__(self, model: nn.Module, adapters: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.names = tuple(adapters)
        self._is_chosen = False
        model_type = getattr(getattr(model, "config", None), "model_type", None)
        self._flattens = model_type in FLATTENING_TYPES
        shapes: dict[tuple[str, torch.Size], dict[str, Tensor]] = {}
        for name, tensors in adapters.items():
            for key, delta in tensors.items():
                _check_delta(model, name, key, delta)
                shapes.setdefault((key, delta.shape), {})[name] = delta
        self._stacks = [
            _stack(model.get_submodule(key.removesuffix(_SUFFIX)), deltas)
            for (key, _), deltas in shapes.items()
        ]

    @contextlib.contextmanager
    def chosen(self, names: Sequence[str | None]) -> Iterator[None]:
        """Give each row of the batches inside the block an adapter.

        Args:
            names: of each row, in order, the adapter's name, or None for the base alone. Where a
                row becomes several, as in a beam search of ``num_beams``, the name is repeated as
                often, one after another.

        Raises:
            UserError: if a name is unknown, a batch inside has another number of rows, or an outer
                block has chosen already.
        """
        if self._is_chosen:
            raise UserError("adapters must be chosen once at a time; got a block within another")
        if unknown := sorted({n for n in names if n is not None} - set(self.names)):
            raise UserError(
                f"each row must choose one of {', '.join(self.names)} or None; got {unknown}"
            )
        choices: dict[tuple[tuple[str, ...], torch.device], Tensor] = {}
        with contextlib.ExitStack() as hooks:
            for stack in self._stacks:
                key = stack.names, stack.deltas.device
                if key not in choices:
                    choices[key] = _choice(names, stack)
                hook = _adding(stack.deltas, choices[key], self._flattens)
                hooks.enter_context(stack.module.register_forward_hook(hook))
            hooks.callback(setattr, self, "_is_chosen", False)
            self._is_chosen = True
            yield


def check_sees_rows(layer: str) -> None:
    """Raise UserError if a layer, by its full name, is one expert of several.

    It sees some of the tokens, in any order, so that nobody knows whose they are.
    """
    if "experts" in layer.split("."):
        raise UserError(
            "a layer must see all rows of a batch, in order, where each row has an adapter of its "
            f"own; got the expert {layer}"
        )


def _check_delta(model: nn.Module, name: str, key: str, delta: Tensor) -> None:
    layer = key.removesuffix(_SUFFIX)
    modules: dict[str, Any] = dict(model.named_modules())
    module = modules.get(layer)
    if layer == key or module is None or not is_linear(module):
        raise UserError(
            f'each tensor of an adapter must be "<layer>{_SUFFIX}" with a linear layer of the '
            f"model; got {key!r} in adapter {name!r}"
            + (f", a {type(module).__name__}" if module is not None else "")
        )
    check_sees_rows(layer)
    widths = module.in_features, module.out_features
    if delta.dim() != 3 or (len(delta) * delta.shape[1], len(delta) * delta.shape[2]) != widths:
        raise UserError(
            "a delta must be [num_blocks, in_block, out_block] with blocks that fill the layer; "
            f"got {list(delta.shape)} for {layer} of {widths[0]} -> {widths[1]} in adapter {name!r}"
        )
    # A formulation may multiply it by zero for the rows of other adapters, too.
    if not torch.isfinite(delta).all():
        raise UserError(f"a delta must be finite; got NaN or infinity in {key} of adapter {name!r}")


def _stack(module: nn.Module, deltas: Mapping[str, Tensor]) -> _Stack:
    dtype = base_of(module).dtype
    device = next(module.parameters()).device
    stacked = stack_deltas([delta.detach().to(device, dtype) for delta in deltas.values()])
    return _Stack(module, tuple(deltas), stacked)


def _choice(names: Sequence[str | None], stack: _Stack) -> Tensor:
    """Return each row's index among the adapters of a stack, ``[batch]`` int64."""
    index: dict[str | None, int] = {name: number for number, name in enumerate(stack.names)}
    numbers = [index.get(name, NO_ADAPTER) for name in names]
    return torch.tensor(numbers, dtype=torch.int64, device=stack.deltas.device)


def _adding(
    deltas: Tensor, choice: Tensor, flattens: bool
) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def add(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        x, chosen = args[0], choice
        num_tokens = len(x) // max(1, len(choice))
        if flattens and x.dim() == 2 and len(x) == num_tokens * len(choice):
            chosen = choice.repeat_interleave(num_tokens)
        if len(x) != len(chosen):
            raise UserError(
                f"each row must have one chosen adapter; got {len(choice)} names and a batch of "
                f"{len(x)} rows; where rows are repeated, as in a beam search, repeat the names"
            )
        inplace = not torch.is_grad_enabled()
        return add_chosen_deltas(y, x, deltas, chosen, inplace=inplace)

    return add
