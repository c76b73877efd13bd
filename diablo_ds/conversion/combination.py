"""The weighted sum of adapters on one base: since sums of blocks are blocks, an adapter itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diablo_ds.adapter.finding import find_adapter
from diablo_ds.adapter.storage import AdapterConfig, load_adapter, load_adapter_config
from diablo_ds.conversion.card import save_with_card
from diablo_ds.conversion.output import check_new_folder, check_outside
from diablo_ds.errors import UserError


@dataclass(frozen=True)
class Term:
    """One adapter of a sum, and its factor."""

    path: Path
    weight: float


def parse_term(text: str) -> Term:
    """Return the term that "PATH=WEIGHT" means; the path may contain "=".

    Raises:
        UserError: if there is no weight, or it is 0 or not a finite number.
    """
    path, _, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not path or not math.isfinite(weight) or weight == 0:
        raise UserError(
            "each adapter must be given as PATH=WEIGHT with a finite weight other than 0, such as "
            f"runs/a=0.7; got {text!r}"
        )
    return Term(Path(path), weight)


def combine(terms: Sequence[Term], output: Path) -> AdapterConfig:
    """Write the adapter whose deltas are the weighted sums of the deltas of others.

    Each sum is computed in fp64 and rounded once to fp32.

    Args:
        terms: at least one; all for one base, with the same layers and block counts.
        output: a new folder.

    Returns:
        The config of the new adapter.

    Raises:
        UserError: if the adapters do not belong together, one is damaged or given twice, the sum
            is zero or beyond fp32, or ``output`` exists or lies in one of them.
    """
    check_new_folder(output)
    folders = _find_folders(terms)
    check_outside(output, folders)
    configs = [load_adapter_config(folder) for folder in folders]
    for folder, config in zip(folders[1:], configs[1:], strict=True):
        _check_same_base(folders[0], configs[0], folder, config)
        _check_same_geometry(folders[0], configs[0], folder, config)
    tensors = _sum(folders, [term.weight for term in terms])
    combined = _combined_config(terms, configs)
    save_with_card(output, tensors, combined)
    return combined


def _find_folders(terms: Sequence[Term]) -> list[Path]:
    if not terms:
        raise UserError("adapters must be at least one PATH=WEIGHT; got none")
    if len(terms) == 1 and terms[0].weight == 1:
        raise UserError(
            "a single adapter must have a weight other than 1; got "
            f"{terms[0].path}=1, which would be a copy; name a second adapter"
        )
    folders = [find_adapter(term.path) for term in terms]
    resolved = [folder.resolve() for folder in folders]
    for number, folder in enumerate(resolved):
        first = resolved.index(folder)
        if first != number:
            raise UserError(
                "each adapter must be given once; got duplicates, "
                f"{terms[first].path} and {terms[number].path}; add their weights"
            )
    return folders


def _check_same_base(
    first_folder: Path, first: AdapterConfig, folder: Path, config: AdapterConfig
) -> None:
    """Raise UserError unless two adapters were trained on one base.

    Where a fingerprint is unknown, the names of the base models have to be equal.
    """
    if first.base_fingerprint and config.base_fingerprint:
        is_same = first.base_fingerprint == config.base_fingerprint
    else:
        is_same = first.base_model == config.base_model
    if not is_same:
        raise UserError(
            "adapters must belong to the same base model; got "
            f"{_base_text(first)} for {first_folder} and {_base_text(config)} for {folder}"
        )


def _base_text(config: AdapterConfig) -> str:
    return f"{config.base_model!r} (fingerprint {config.base_fingerprint[:12] or 'unknown'})"


def _check_same_geometry(
    first_folder: Path, first: AdapterConfig, folder: Path, config: AdapterConfig
) -> None:
    """Raise UserError unless two adapters have the same layers and block counts."""
    for one, other, missing in (
        (folder, first_folder, first.num_blocks.keys() - config.num_blocks.keys()),
        (first_folder, folder, config.num_blocks.keys() - first.num_blocks.keys()),
    ):
        if missing:
            raise UserError(
                f"adapters must have deltas on the same layers; got {len(missing)} of {other} "
                f"that {one} lacks, e.g. {min(missing)}"
            )
    for name, count in first.num_blocks.items():
        if config.num_blocks[name] != count:
            raise UserError(
                "adapters must have the same num_blocks on each layer; got "
                f"num_blocks={count} in {first_folder} and num_blocks={config.num_blocks[name]} "
                f"in {folder} for {name}"
            )


def _sum(folders: Sequence[Path], weights: Sequence[float]) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    for folder, weight in zip(folders, weights, strict=True):
        tensors, _ = load_adapter(folder)
        for name, tensor in tensors.items():
            check_finite(name, tensor, folder)
            product = tensor.double() * weight
            if name in sums and sums[name].shape != product.shape:
                raise UserError(
                    "adapters must have deltas of the same shapes; got "
                    f"{list(sums[name].shape)} in {folders[0]} and {list(product.shape)} in "
                    f"{folder} for {name}"
                )
            sums[name] = sums[name].add_(product) if name in sums else product
    rounded = {name: total.float() for name, total in sums.items()}
    for name, total in rounded.items():
        if not torch.isfinite(total).all():
            raise UserError(
                f"weighted sums must be within fp32's range; got a larger number in {name}; use "
                "smaller weights"
            )
    if not any(total.any() for total in rounded.values()):
        raise UserError(
            "the weighted sum must not be zero everywhere; got adapters that cancel each other"
        )
    return rounded


def check_finite(name: str, tensor: Tensor, source: Path) -> None:
    """Raise UserError if a tensor holds NaN or an infinity.

    Args:
        name: of the tensor, for the error.
        tensor: of any float dtype.
        source: where it was read, for the error.
    """
    if not torch.isfinite(tensor).all():
        kind = "NaN" if torch.isnan(tensor).any() else "an infinity"
        raise UserError(f"tensors must hold finite numbers; got {kind} in {name} of {source}")


def _combined_config(terms: Sequence[Term], configs: Sequence[AdapterConfig]) -> AdapterConfig:
    """Return the config of a sum: what all have in common, and no dropout where they differ."""
    dropouts = {config.dropout for config in configs}
    known = next((config for config in configs if config.base_fingerprint), configs[0])
    parents = [
        {
            "folder": str(term.path),
            "weight": term.weight,
            **({} if config.step is None else {"step": config.step}),
            **({} if config.heldout_loss is None else {"heldout_loss": config.heldout_loss}),
            **({} if config.parent is None else {"parent": config.parent}),
        }
        for term, config in zip(terms, configs, strict=True)
    ]
    return AdapterConfig(
        base_model=known.base_model,
        base_fingerprint=known.base_fingerprint,
        num_blocks=known.num_blocks,
        dropout=dropouts.pop() if len(dropouts) == 1 else 0.0,
        parent={"combined": parents},
        revision=known.revision,
        targets=known.targets,
    )
