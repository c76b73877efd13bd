"""What goes into a merge, checked against each other before anything is written."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from diablo_ds.adapter.finding import find_adapter
from diablo_ds.adapter.storage import check_base, check_covered
from diablo_ds.conversion.merging.deltas import StoredDeltas
from diablo_ds.conversion.merging.options import MergeOptions
from diablo_ds.conversion.output import check_new_folder, check_outside
from diablo_ds.errors import UserError
from diablo_ds.files.tensor_files import StoredTensor, find_tensors
from diablo_ds.model.architecture import read_config_values
from diablo_ds.model.checkpoint_contents import check_stored_dtypes
from diablo_ds.model.finding import find_base, fingerprint
from diablo_ds.model.weight_names import find_weights

logger = logging.getLogger("diablo_ds")


@dataclass(frozen=True)
class MergeInputs:
    """An adapter, its base, and which stored tensor each delta belongs to."""

    base: Path
    fingerprint: str
    """Of the base."""
    tensors: dict[str, StoredTensor]
    """The base's, by the name in its files."""
    adapter: Path
    deltas: StoredDeltas
    layer_of: dict[str, str]
    """The layer by the name of its weight in the files."""


def find_inputs(options: MergeOptions) -> MergeInputs:
    """Find what is to be merged, and check that it belongs together.

    Raises:
        UserError: if a folder or file is missing or damaged, the base is quantised, another base
            than the adapter's, or lacks a layer, or the output has content or lies in an input.
    """
    adapter = find_adapter(options.adapter)
    check_new_folder(options.output)
    deltas = StoredDeltas(adapter)
    base = find_base(options.base, deltas.config, options.adapter)
    check_outside(options.output, (base, adapter))
    read_config_values(base)  # before any weight: it says what the weights mean
    tensors = find_tensors(base)
    check_stored_dtypes(tensors, (), base)
    found = fingerprint(base)
    _check_fingerprint(deltas, base, found, force=options.force)
    names = find_weights(base, tensors, deltas.config.num_blocks)
    _check_shapes(deltas, names, tensors, base)
    matrices = (name for name, tensor in tensors.items() if len(tensor.shape) == 2)
    covered = {_module(name) for name in names.values()}
    check_covered(deltas.config, covered, map(_module, matrices))
    layer_of = {name: layer for layer, name in names.items()}
    return MergeInputs(base, found, tensors, adapter, deltas, layer_of)


def _module(weight: str) -> str:
    return weight.removesuffix(".weight")


def _check_fingerprint(deltas: StoredDeltas, base: Path, found: str, *, force: bool) -> None:
    recorded = deltas.config.base_fingerprint
    if not recorded:
        logger.warning(
            "The adapter records no fingerprint of its base: only names and shapes were compared"
        )
        return
    try:
        check_base(deltas.config, str(base), found, force=force)
    except UserError as error:
        raise UserError(f"{error}; name that one by --base, or give --force") from None


def _check_shapes(
    deltas: StoredDeltas,
    names: dict[str, str],
    tensors: dict[str, StoredTensor],
    base: Path,
) -> None:
    for layer, name in names.items():
        num_blocks, in_block, out_block = deltas.shape(layer)
        wanted = (num_blocks * out_block, num_blocks * in_block)
        if tensors[name].shape != wanted:
            raise UserError(
                "a delta must have the blocks of its layer's weight; got a delta for "
                f"{list(wanted)} and {name} of {list(tensors[name].shape)} in {base}"
            )
        if not tensors[name].dtype.is_floating_point:
            raise UserError(
                f"a weight with a delta must be stored as floats; got {tensors[name].dtype} for "
                f"{name} in {base}"
            )
