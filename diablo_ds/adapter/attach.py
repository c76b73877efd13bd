"""Attaching deltas to a model: frozen linear layers become layers that own one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from diablo_ds.adapter.layer import DiaBloLinear
from diablo_ds.adapter.storage import check_same_names
from diablo_ds.errors import UserError


def attach(
    model: nn.Module,
    num_blocks: Mapping[str, int],
    *,
    dropout: float = 0.0,
    delta_path: str = "fused",
    device: torch.device | str | None = None,
    delta_dtype: torch.dtype | None = None,
) -> dict[str, nn.Parameter]:
    """Freeze the model and give the named linear layers a delta, in place.

    A layer that is used in several places of the model gets one delta, and is replaced in all.

    Args:
        model: the base model; its parameters may be partitioned by ZeRO-3.
        num_blocks: block count by the full module name of the layer.
        dropout: share of the adapter's input that is zeroed while training, in [0, 1).
        delta_path: one of `diablo_ds.adapter.paths.DELTA_PATHS`.
        device: device of the deltas; that of the weights by default.
        delta_dtype: dtype of the deltas; that of the weights by default.

    Returns:
        The deltas by parameter name, in model order.

    Raises:
        UserError: if the model has deltas already, or a layer cannot have one.
    """
    if present := diablo_layers(model):
        raise UserError(
            f"a model must be without deltas to be given some; got {len(present)} layers with one, "
            f"the first {next(iter(present))}; detach or merge them first"
        )
    layers: dict[nn.Module, nn.Module] = {}
    for name, count in num_blocks.items():
        module = model.get_submodule(name)
        layers[module] = DiaBloLinear(
            module,
            num_blocks=count,
            dropout=dropout,
            delta_path=delta_path,
            device=device,
            delta_dtype=delta_dtype,
        )
    model.requires_grad_(False)
    _replace(model, layers)
    return named_deltas(model)


def detach(model: nn.Module) -> None:
    """Put the layers back that `attach` replaced, in place; deltas that are not merged are lost.

    The weights are as they are, so a model whose deltas are merged keeps the sums. Parameters stay
    frozen.
    """
    _replace(model, {layer: layer.release() for layer in diablo_layers(model).values()})


def _replace(model: nn.Module, others: Mapping[nn.Module, nn.Module]) -> None:
    """Replace modules in every place where the model has them."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in others:
                parent._modules[name] = others[child]


def diablo_layers(model: nn.Module) -> dict[str, DiaBloLinear]:
    """Return the layers that own a delta, by module type, never by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, DiaBloLinear)}


def named_deltas(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the deltas by parameter name, in model order."""
    return {f"{name}.delta": layer.delta for name, layer in diablo_layers(model).items()}


@contextlib.contextmanager
def without_deltas(model: nn.Module) -> Iterator[None]:
    """Leave all deltas out inside the block: the model computes what its base does, bit for bit.

    Single layers are switched by their ``is_enabled``, which this puts back as it was, also on an
    error. Works for compiled layers, which are compiled once more for it, and under ZeRO-3. Where
    activations are recomputed, the backward of a forward inside must be inside, too.

    Raises:
        UserError: if a delta is merged into its base weight.
    """
    layers = diablo_layers(model)
    if merged := [name for name, layer in layers.items() if layer.is_merged]:
        raise UserError(
            "deltas must not be merged to be left out; got "
            f"{len(merged)} merged layers, the first {merged[0]}; unmerge them first"
        )
    before = {name: layer.is_enabled for name, layer in layers.items()}
    try:
        for layer in layers.values():
            layer.is_enabled = False
        yield
    finally:
        for name, layer in layers.items():
            layer.is_enabled = before[name]


@torch.no_grad()
def load_deltas(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy delta values into an attached model, strictly: names and shapes must agree.

    Args:
        model: a model with deltas that DeepSpeed has not taken over yet.
        tensors: values by parameter name, ``[num_blocks, in_block, out_block]``, cast to the
            dtype of the model's deltas.

    Raises:
        UserError: if a delta is missing, unknown or of another shape.
    """
    deltas = named_deltas(model)
    check_same_names("adapter", tensors.keys(), deltas.keys())
    for name, delta in deltas.items():
        if tensors[name].shape != delta.shape:
            raise UserError(
                f"adapter delta must have the shape of the model's; got {name} of shape "
                f"{list(tensors[name].shape)}, the model's is {list(delta.shape)}"
            )
    for name, delta in deltas.items():
        delta.copy_(tensors[name])
