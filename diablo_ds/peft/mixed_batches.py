"""Batches in which each row has its own adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from diablo_ds.adapter.serving import FLATTENING_TYPES, check_sees_rows
from diablo_ds.errors import UserError
from diablo_ds.peft.layer import DiaBloTunerLinear
from diablo_ds.peft.rows import BASE, Rows


@contextmanager
def adapters_by_row(
    model: nn.Module, adapter_names: Sequence[str] | None, num_beams: int | None
) -> Iterator[None]:
    """Make the layers use an adapter of its own for each row of the batch, inside the block.

    Args:
        model: the tuner.
        adapter_names: for each row the name of an adapter or "__base__"; None for the active ones.
        num_beams: of a beam search, which repeats each row so often.

    Raises:
        UserError: if the model is in training mode, an adapter does not exist, or a layer does not
            see the rows of the batch.
    """
    if adapter_names is None:
        yield
        return
    if isinstance(adapter_names, str):
        raise UserError(f"adapter_names must be a list, one name per row; got {adapter_names!r}")
    if model.training:
        raise UserError("Cannot pass `adapter_names` when the model is in training mode.")
    layers = {n: m for n, m in model.named_modules() if isinstance(m, DiaBloTunerLinear)}
    for name in layers:
        check_sees_rows(name)
    known = {BASE}.union(*(layer.diablo_delta.keys() for layer in layers.values()))
    if unknown := sorted(set(adapter_names) - known):
        raise UserError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")
    repeated = (name for name in adapter_names for _ in range(num_beams or 1))
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    rows = Rows(repeated, flattens=model_type in FLATTENING_TYPES)
    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, DiaBloTunerLinear | AuxiliaryTrainingWrapper):
                handle = module.register_forward_pre_hook(partial(_pass_on, rows), with_kwargs=True)
                hooks.callback(handle.remove)
        yield


def _pass_on(
    rows: Rows, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, "adapter_names": rows}
