"""Dropout that the base model brings along: found by what its forward does, named, switched off.

Architectures keep their dropout in modules, in numbers on modules and in numbers of the config, by
many names. So it is looked for where it acts: in a training forward on the meta device, each call
of a dropout function with a rate above 0 counts, with the module that makes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from diablo_ds.errors import UserError

Rates = dict[str, float]
"""Dropout rates by the path of the module that acts, with ``*`` for the layers' numbers."""
_ATTENTION_RATE_ARGUMENT = 4


def find_dropout(meta_model: Any) -> Rates:
    """Return the dropout that acts while a model trains.

    Args:
        meta_model: the model on the meta device, in training mode, without deltas.
    """
    # Drops entire layers, without calling a dropout function.
    found = _declared(meta_model, only="layerdrop")
    try:
        acting = _acting(meta_model)
    except Exception:  # values decide about its forward, and there are none on the meta device
        acting = _declared(meta_model)
    return found | acting


def check_layers_kept(meta_model: Any) -> None:
    """Raise UserError where training leaves out layers at random: on each rank others.

    Under ZeRO-3 all ranks have to gather the same layers.
    """
    if rates := _declared(meta_model, only="layerdrop"):
        raise UserError(
            "a base that drops entire layers at random needs ZeRO stage 0, 1 or 2, or one rank;"
            f" got layerdrop={max(rates.values()):g} at stage 3; use --no-base-dropout"
        )


def describe_dropout(rates: Mapping[str, float]) -> str:
    """Return rates as text: `0.1 in model.layers.*.self_attn, ...`."""
    return ", ".join(f"{rate:g} in {path or 'the model'}" for path, rate in sorted(rates.items()))


def switch_off_dropout(model: Any) -> None:
    """Set every dropout rate of a model and of its config to 0. Comes before deltas are attached.

    Args:
        model: the model, partitioned or not.
    """
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        _set_to_zero(module)
    for config in _configs(model.config):
        _set_to_zero(config)


def choose_dropout(setting: bool | None, meta_model: Any) -> tuple[bool | None, Rates]:
    """Decide whether the base keeps its dropout; switches that of ``meta_model`` off where not.

    Args:
        setting: the run config's `base_dropout`; None where it is open.
        meta_model: as for `find_dropout`.

    Returns:
        The setting as chosen, None where the base has no dropout, and the rates found.

    Raises:
        UserError: if the setting has no effect, or some dropout cannot be switched off.
    """
    rates = find_dropout(meta_model)
    if not rates:
        if setting is not None:
            raise UserError(
                "base_dropout needs a base with dropout of its own; got "
                f"base_dropout={setting} and a base without; leave the setting out"
            )
        return None, rates
    if setting is False:
        switch_off_dropout(meta_model)
        if left := find_dropout(meta_model):
            raise UserError(
                "base_dropout=False must switch off all of the base's dropout; got what cannot be "
                f"reached: {describe_dropout(left)}; train with it"
            )
        return False, rates
    return True, rates


def _rates_of(owner: Any) -> list[str]:
    """Return the names of the numbers above 0 that a module or config calls a dropout."""
    return [
        name
        for name, value in vars(owner).items()
        if "drop" in name and isinstance(value, float | int) and not isinstance(value, bool)
        if value > 0
    ]


def _set_to_zero(owner: Any) -> None:
    for name in _rates_of(owner):
        setattr(owner, name, type(getattr(owner, name))(0))  # configs check the type


def _configs(model_config: Any) -> Iterator[Any]:
    """Yield a model's config and those in it."""
    yield model_config
    for value in vars(model_config).values():
        if hasattr(value, "to_dict"):
            yield from _configs(value)


def _declared(model: nn.Module, only: str = "drop") -> Rates:
    """Return rates by what modules say of themselves, acting or not."""
    found: Rates = {}
    for path, module in model.named_modules():
        rates = [float(getattr(module, name)) for name in _rates_of(module) if only in name]
        if isinstance(module, _DropoutNd) and only == "drop" and module.p > 0:
            rates.append(module.p)
        if rates:
            found[_without_numbers(path)] = max(rates)
    return found


def _acting(meta_model: Any) -> Rates:
    """Return rates by the modules whose forward calls a dropout function."""
    found: Rates = {}
    with _module_paths(meta_model) as paths:

        def note(rate: float) -> None:
            path = _without_numbers(paths[-1])
            found[path] = max(rate, found.get(path, 0.0))

        tokens = torch.zeros(1, 2, dtype=torch.int64, device="meta")
        # A mask of 4 dims is taken as it is; to build one, values would be needed.
        mask = torch.zeros(1, 1, 2, 2, dtype=next(meta_model.parameters()).dtype, device="meta")
        with _Watch(note), torch.no_grad():
            meta_model(input_ids=tokens, position_ids=tokens, attention_mask=mask, use_cache=False)
    return found


class _Watch(TorchFunctionMode):
    """Notes the rate of each dropout call in training."""

    def __init__(self, note: Callable[[float], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at a call, and make it."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        rate = 0.0
        if name == "scaled_dot_product_attention":
            position = _ATTENTION_RATE_ARGUMENT
            rate = kwargs.get("dropout_p", args[position] if len(args) > position else 0.0)
        elif "dropout" in name:
            given = dict(zip(("p", "training"), args[1:], strict=False)) | kwargs
            rate = given.get("p", 0.5) if given.get("training", True) else 0.0
        if rate:
            self.note(float(rate))
        return func(*args, **kwargs)


@contextmanager
def _module_paths(model: nn.Module) -> Iterator[list[str]]:
    """Yield the paths of the modules that are at work, the innermost last."""
    paths = [""]
    handles = []
    for path, module in model.named_modules():
        enter = _entering(paths, path)
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(lambda *_: paths.pop() and None))
    try:
        yield paths
    finally:
        for handle in handles:
            handle.remove()


def _entering(paths: list[str], path: str) -> Callable[..., None]:
    return lambda *_: paths.append(path)


def _without_numbers(path: str) -> str:
    return re.sub(r"\b\d+\b", "*", path)
