"""Adapters in the files of the method's published code, `adapter.chkpt`.

Such a file is a pickled state dict of the tensors whose names contain "block": of each layer
`<layer>.block_A`, ``[num_blocks, in_block, out_block]``, which is a delta as it is stored here.
It names neither its base nor a block count. Where the count did not divide a layer's widths, the
published code rounded both block widths up, padded the input with zeros and cut the output off;
the blocks then lie across the diagonal of no division of the weight, and such a file is refused.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diablo_ds.adapter.base import is_linear
from diablo_ds.adapter.layer_names import targets_of
from diablo_ds.adapter.storage import AdapterConfig
from diablo_ds.adapter.targets import layer_number
from diablo_ds.conversion.card import save_with_card
from diablo_ds.conversion.combination import check_finite
from diablo_ds.conversion.output import check_new_folder, check_outside
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import sha256_file
from diablo_ds.files.hub import revision_of
from diablo_ds.model.architecture import build_meta_model, load_model_config
from diablo_ds.model.finding import find_model, fingerprint, lasting_name

PUBLISHED_FILE = "adapter.chkpt"
_SUFFIX = ".block_A"


@dataclass(frozen=True)
class Imported:
    """What an import found."""

    config: AdapterConfig
    bare_layers: tuple[int, ...]
    """Decoder layers without any delta, where others have one."""
    dtypes: tuple[str, ...]
    """Of the tensors in the file."""


def import_published(file: Path, base: str, output: Path) -> Imported:
    """Write the adapter that a file of the published code holds.

    Args:
        file: `adapter.chkpt`, or a folder with one. It is unpickled as tensors only, so that
            nothing in it is run.
        base: name or folder of the base model that it was trained on.
        output: a new folder.

    Raises:
        UserError: if the file is damaged or does not fit the base, the published code's padding
            was in use, a number is not finite, or ``output`` exists or lies in the base.
    """
    check_new_folder(output)
    path = file / PUBLISHED_FILE if file.is_dir() else file
    tensors = load_published(path)
    folder = find_model(base)
    check_outside(output, [folder])
    shapes = build_meta_model(load_model_config(folder))
    deltas = {}
    for name, tensor in tensors.items():
        layer = name.removesuffix(_SUFFIX)
        _check_delta(layer, tensor, shapes, file)
        deltas[f"{layer}.delta"] = tensor.float()
    if not any(delta.any() for delta in deltas.values()):
        raise UserError(f"deltas must not all be zero; got {file}, an adapter without training")
    num_blocks = {name.removesuffix(".delta"): len(delta) for name, delta in deltas.items()}
    config = AdapterConfig(
        base_model=lasting_name(base),
        base_fingerprint=fingerprint(folder),
        num_blocks=num_blocks,
        parent={"imported": str(path), "sha256": sha256_file(path)},
        revision=revision_of(folder) or None,
        targets=targets_of(num_blocks, dict(shapes.named_modules())),
    )
    save_with_card(output, deltas, config)
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
    return Imported(config, _bare_layers(shapes, num_blocks), tuple(dtypes))


def load_published(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, each `<layer>.block_A`.

    Raises:
        UserError: if it is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise UserError(f"file must exist; got {path}")
    try:
        _check_archive(path)
        value: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"file must be a state dict of tensors alone; got {path}, which holds other objects or "
            "is damaged; whatever else it holds is not loaded, since that could run code"
        ) from None
    except Exception as error:  # torch's unpickler raises many kinds for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"file must be one that torch.save wrote; got {path}: {reason}") from None
    if not isinstance(value, dict) or not value:
        raise UserError(
            f"file must be a state dict with tensors; got {type(value).__name__} of "
            f"{len(value) if isinstance(value, dict) else 'no'} entries in {path}"
        )
    others = [
        str(name)
        for name, tensor in value.items()
        if not isinstance(name, str) or not name.endswith(_SUFFIX) or not _is_full(tensor)
    ]
    if others:
        raise UserError(
            f"each entry must be a contiguous tensor named <layer>{_SUFFIX}; got {len(others)} "
            f"others, e.g. {others[0]!r:.100}, in {path}; the published code also saves what "
            'merely has "block" or "score" in its name: remove what is not a delta, if it is as in '
            "the base"
        )
    return value


def _check_archive(path: Path) -> None:
    """Raise ValueError if an archive's members are larger than the file; torch stores them as is.

    Raises:
        BadZipFile: if it is no archive, as files of torch before 1.6 are not.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("its members must not be compressed")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("its members are larger than the file")


def _is_full(value: Any) -> bool:
    """Return whether a value is a tensor with as many numbers in memory as its shape says."""
    return (
        torch.is_tensor(value)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.is_contiguous()
    )


def _check_delta(layer: str, tensor: Tensor, shapes: nn.Module, file: Path) -> None:
    """Raise UserError unless a tensor is a delta of a layer of the base."""
    try:
        module: Any = shapes.get_submodule(layer)
    except AttributeError:
        module = None
    if module is None or not is_linear(module):
        raise UserError(
            "each tensor must belong to a linear layer of the base model; got "
            f"{layer}{_SUFFIX} in {file}, and the base has no linear layer {layer}"
        )
    if tensor.dim() != 3 or not tensor.dtype.is_floating_point or not tensor.numel():
        raise UserError(
            "a published delta must be of floats, of shape [num_blocks, in_block, out_block]; got "
            f"shape {list(tensor.shape)} and {tensor.dtype} for {layer}{_SUFFIX} in {file}"
        )
    num_blocks, in_block, out_block = tensor.shape
    widths = module.in_features, module.out_features
    if (num_blocks * in_block, num_blocks * out_block) != widths:
        held = f"num_blocks={num_blocks} blocks of {in_block} x {out_block} for {layer}"
        whose = f"in_features={widths[0]}, out_features={widths[1]}, in {file}"
        if _is_padded(num_blocks, in_block, out_block, *widths):
            raise UserError(
                "num_blocks must divide both widths of each layer; got "
                f"{held} with {whose}: the published code has rounded the block widths up, padded "
                "the input with zeros and cut the output off, and blocks that lie so are no "
                "diagonal blocks of the weight; merge with the published code, or train again with "
                "a num_blocks that divides"
            )
        raise UserError(
            "blocks must cover the diagonal of the base's weight; got "
            f"{held} with {whose}; name the base model that the file was trained on"
        )
    check_finite(f"{layer}{_SUFFIX}", tensor, file)


def _is_padded(
    num_blocks: int, in_block: int, out_block: int, in_features: int, out_features: int
) -> bool:
    """Return whether the published code's rule gives such blocks for a layer of these widths.

    It rounds both block widths up, and takes as many blocks as the wider need of the two.
    """
    needed = max(math.ceil(in_features / in_block), math.ceil(out_features / out_block))
    return num_blocks == needed and any(
        (math.ceil(in_features / n), math.ceil(out_features / n)) == (in_block, out_block)
        for n in range(num_blocks, max(in_features, out_features) + 1)
    )


def _bare_layers(shapes: nn.Module, num_blocks: dict[str, int]) -> tuple[int, ...]:
    """Return the numbers of decoder layers that have linear layers, but no delta."""
    present = {layer_number(name) for name, m in shapes.named_modules() if is_linear(m)}
    trained = {layer_number(name) for name in num_blocks}
    return tuple(sorted(n for n in present - trained if n is not None))
