"""The package's functions for Python: deltas on any model, in any training loop.

    deltas = diablo_ds.attach(model)            # freezes the base; train these
    optimizer = torch.optim.AdamW(deltas.values(), lr=1e-3)
    ...
    diablo_ds.save(model, "adapter")            # the folder that every command and PEFT read
    model = diablo_ds.load("org/model", "adapter")
    diablo_ds.merge(model)                      # or diablo_ds.detach(model)

Nothing here needs DeepSpeed, which is not imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diablo_ds.adapter import attach as attaching
from diablo_ds.adapter.contents import check_finite
from diablo_ds.adapter.finding import find_adapter
from diablo_ds.adapter.layer import delta_shapes
from diablo_ds.adapter.layer_names import targets_of
from diablo_ds.adapter.merging import LARGE_SHARE
from diablo_ds.adapter.storage import (
    AdapterConfig,
    check_base,
    load_adapter,
    save_adapter,
)
from diablo_ds.adapter.targets import resolve_num_blocks, select_targets
from diablo_ds.api.checks import (
    as_text,
    check_geometry,
    check_mergeable,
    check_replaceable,
    check_without_deltas,
    counts_by_target,
    layers_with_deltas,
    selection,
    unwrapped,
)
from diablo_ds.errors import UserError
from diablo_ds.files.hub import revision_of
from diablo_ds.model.architecture import load_model_config
from diablo_ds.model.finding import files_of, find_model, fingerprint
from diablo_ds.model.pretrained import from_pretrained
from diablo_ds.ranks.log import logger
from diablo_ds.ranks.software import installed_versions

NumBlocks = int | str
"""A count, or "auto:<share>" such as "auto:1%"."""


def attach(
    model: nn.Module,
    num_blocks: NumBlocks | Mapping[str, NumBlocks] = 64,
    targets: str | Iterable[str] | None = None,
    *,
    layers: str = "",
    dropout: float = 0.0,
) -> dict[str, nn.Parameter]:
    """Freeze a model and give its target layers trainable deltas, in place.

    Deltas start at zero, so the outputs stay as they are. They are fp32, also beside a base in half
    precision: a step of the learning rate is often too small to change a bf16 number at all. For
    the product they are cast to the base's dtype.

    Args:
        model: a causal LM of transformers or any other module with `torch.nn.Linear` layers.
        num_blocks: diagonal blocks of each layer, a count that divides both of its widths or
            "auto:<share>" of its weights, such as "auto:1%"; or either by target, such as
            ``{"q_proj": 64, "mlp.down_proj": "auto:1%"}``.
        targets: a module's name or its last parts, or several; patterns are those of
            ``diablo-ds train --targets``. By default the keys of ``num_blocks``, where it has some,
            else the layers that are usual for the model's type: query, key, value, up and down.
        layers: decoder layers to keep, e.g. "0-3,8"; empty for all.
        dropout: share of the deltas' input that is zeroed while training, in [0, 1).

    Returns:
        The deltas by parameter name, ``[num_blocks, in_block, out_block]`` each: the model's only
        parameters that require gradients.

    Raises:
        UserError: if the model has deltas already, a target matches no linear layer, no targets are
            known for the model's type, or a count does not divide a layer. The model is unchanged.
    """
    names = (targets,) if isinstance(targets, str) else tuple(targets or ())
    by_target = {}
    if isinstance(num_blocks, Mapping):
        by_target = {name: as_text(value) for name, value in num_blocks.items()}
        names = names or tuple(by_target)
    options = selection(model, layers)
    check_without_deltas(model)
    chosen = select_targets(model, names, **options)
    if isinstance(num_blocks, Mapping):
        counts = counts_by_target(model, chosen, by_target, options)
    else:
        counts = resolve_num_blocks(chosen, as_text(num_blocks))
    return attaching.attach(model, counts, dropout=dropout, delta_dtype=torch.float32)


def save(model: nn.Module, folder: str | Path) -> Path:
    """Write a model's deltas as an adapter's folder, fp32, in PEFT's format.

    Commands such as ``diablo-ds merge`` read it, and PEFT after ``import diablo_ds.peft``. Where
    the model was loaded from files that are still there, the folder records their fingerprint.

    Args:
        model: has deltas; may be wrapped by DistributedDataParallel or compiled.
        folder: created; an adapter that is there is replaced.

    Returns:
        The folder.

    Raises:
        UserError: if the model has no deltas, one is not finite or partitioned, or the folder holds
            something else.
    """
    folder, model = Path(folder).expanduser(), unwrapped(model)
    deltas = attaching.named_deltas(model)
    layers = layers_with_deltas(model)
    check_replaceable(folder)
    counts = {name: layer.num_blocks for name, layer in layers.items()}
    for name, shape in delta_shapes(model, counts).items():
        if deltas[name].shape != shape:
            raise UserError(
                f"a delta must be unsharded to be saved; got {name} of shape "
                f"{list(deltas[name].shape)} instead of {list(shape)}"
            )
    files = files_of(model)
    config = AdapterConfig(
        base_model=str(getattr(model, "name_or_path", "") or ""),
        base_fingerprint=fingerprint(files) if files else "",
        revision=revision_of(files) or None if files else None,
        num_blocks=counts,
        dropout=max(layer.dropout for layer in layers.values()),
        library_versions=installed_versions(),
        targets=targets_of(counts, dict(model.named_modules())),
    )
    tensors = {name: delta.detach().float().cpu() for name, delta in deltas.items()}
    save_adapter(folder, tensors, config)
    return folder


def load(
    model: nn.Module | str | Path,
    folder: str | Path,
    *,
    force: bool = False,
    dtype: torch.dtype | None = None,
) -> Any:
    """Put a saved adapter on its base model, where it can be used, or trained further.

    Args:
        model: the base: a model, which is changed in place, or the folder or hf://owner/name to
            load it from, in evaluation mode.
        folder: an adapter's folder, a checkpoint, or the folder of a run that is done.
        force: take a base with another fingerprint, with a warning. Layers and shapes always have
            to agree.
        dtype: of a base that is loaded; that of its files by default. The deltas are fp32.

    Returns:
        The model.

    Raises:
        UserError: if the adapter is missing or damaged, or is one of another base: of another
            fingerprint, where both are known, or with other layers or shapes; or if the model has
            deltas already. A model that was given is unchanged.
    """
    tensors, config = load_adapter(find_adapter(Path(folder).expanduser()))
    if isinstance(model, nn.Module):
        if dtype is not None:
            raise UserError("dtype needs a base that is loaded by name; got a model and a dtype")
        base, files = unwrapped(model), files_of(unwrapped(model))
        known = fingerprint(files) if files else ""
        check_base(config, str(getattr(base, "name_or_path", "")), known, force=force)
    else:
        files = find_model(str(model))
        check_base(config, str(model), fingerprint(files), force=force)
        model_config = load_model_config(files)
        stored = dtype or getattr(model_config, "dtype", None) or torch.float32
        base = model = from_pretrained(model_config, files, stored, None)
    check_without_deltas(base)
    check_geometry(base, tensors, config)
    attaching.attach(base, config.num_blocks, dropout=config.dropout, delta_dtype=torch.float32)
    attaching.load_deltas(base, tensors)
    return model


def merge(model: nn.Module) -> nn.Module:
    """Add the deltas to the weights for good, in place: the model has its own layers again.

    Sums are computed in fp32 and rounded once to the weight's dtype. Parameters stay frozen. For
    files that are too large for the memory there is ``diablo-ds merge``.

    Returns:
        The model.

    Raises:
        UserError: if the model has no deltas, one is not finite, or a weight cannot take it: it is
            quantised, partitioned, or also another layer's. The model is unchanged.
    """
    base = unwrapped(model)
    layers = layers_with_deltas(base)
    check_mergeable(base, layers)
    check_finite(attaching.named_deltas(base), Path(type(base).__name__))
    num_nonzero = num_swallowed = 0
    dtypes = set()
    for layer in layers.values():
        weight: Any = layer.weight
        before = weight.detach().clone()
        layer.merge()
        dtypes.add(str(weight.dtype).removeprefix("torch."))
        is_nonzero = int((layer.delta != 0).sum())
        num_nonzero += is_nonzero
        num_swallowed += is_nonzero - int((weight != before).sum())
    attaching.detach(base)
    share = num_swallowed / num_nonzero if num_nonzero else 0.0
    if share >= LARGE_SHARE:
        logger.warning(
            f"Warning: rounding to {', '.join(sorted(dtypes))} swallowed {share:.0%} of the "
            "elements of the deltas; a model that is loaded in fp32 keeps them"
        )
    return model


def detach(model: nn.Module) -> nn.Module:
    """Take the deltas off, in place: the model is its base again, bit for bit.

    Deltas that were not saved are lost. Parameters stay frozen.

    Returns:
        The model.

    Raises:
        UserError: if the model has no deltas.
    """
    layers_with_deltas(unwrapped(model))
    attaching.detach(unwrapped(model))
    return model
