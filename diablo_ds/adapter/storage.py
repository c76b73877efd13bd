"""Adapters on disk: folders as PEFT has them, written, and read strictly.

An adapter is all deltas of a model and what they belong to. Its folder holds
`adapter_model.safetensors`, with one fp32 tensor ``base_model.model.<layer>.diablo_delta`` for each
target layer, and `adapter_config.json`. Which layers there are is told by the tensors; what the
config says of them has to agree.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from diablo_ds.adapter.config_file import ConfigFile
from diablo_ds.adapter.contents import (
    check_complete,
    check_finite,
    check_shape,
    keys_by_layer,
    some,
    tensor_key,
)
from diablo_ds.adapter.early_format import is_early, load_early
from diablo_ds.adapter.layer_names import (
    TargetRule,
    compact_num_blocks,
    expand_num_blocks,
    targets_of,
)
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import new_folder, write_json
from diablo_ds.files.layout import ADAPTER_CONFIG_FILE, ADAPTER_TENSOR_FILE
from diablo_ds.files.whole_tensors import load_tensors, save_tensors, tensor_shapes
from diablo_ds.ranks.log import logger


@dataclass(frozen=True)
class AdapterConfig:
    """What identifies an adapter: base model, target layers and their block counts."""

    base_model: str
    """Name or folder of the base model the deltas belong to; empty where it is not known."""
    base_fingerprint: str
    """Fingerprint of the base files, see `diablo_ds.model.finding.fingerprint`; empty where the
    base was not read from files, and where PEFT wrote the adapter."""
    num_blocks: dict[str, int]
    """Block count of each target layer, by the layer's full module name."""
    dropout: float = 0.0
    """Dropout on the adapter's input, as trained."""
    step: int | None = None
    """Optimizer steps after which the adapter was saved."""
    heldout_loss: float | None = None
    """Held-out loss at that step, in nats per target token."""
    library_versions: dict[str, str] = field(default_factory=dict)
    """Versions of the libraries that trained it, by package."""
    parent: dict[str, Any] | None = None
    """The adapter that its training started from."""
    revision: str | None = None
    """Revision of the base model on the hub."""
    targets: TargetRule | None = field(default=None, compare=False)
    """The rule by which PEFT finds the layers among all modules of the base, where one is known
    that is shorter than their full names."""


def check_same_names(what: str, got: Set[str], wanted: Set[str]) -> None:
    """Raise UserError unless two sets of names are equal; shows up to three of each side."""
    missing, unknown = sorted(wanted - got), sorted(got - wanted)
    if missing or unknown:
        raise UserError(
            f"{what} must have exactly the target layers of the model; got "
            f"{len(missing)} missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]}; "
            "use the targets, layers and num_blocks it was made with"
        )


def check_base(
    saved: AdapterConfig, base_model: str, base_fingerprint: str, *, force: bool = False
) -> None:
    """Raise UserError unless an adapter belongs to a base, as far as fingerprints tell.

    Args:
        saved: the adapter's config.
        base_model: name or folder of the base, for the error.
        base_fingerprint: of the base files; empty where it is not known.
        force: whether another base is warned of, not refused.
    """
    known = saved.base_fingerprint and base_fingerprint
    if not known or saved.base_fingerprint == base_fingerprint:
        return
    problem = (
        "adapter must be loaded on the base model it was trained on; got an adapter of "
        f"{saved.base_model!r} (fingerprint {saved.base_fingerprint[:12]}) on "
        f"{base_model!r} (fingerprint {base_fingerprint[:12]})"
    )
    if not force:
        raise UserError(problem)
    logger.warning(f"Warning: {problem}")


def check_adapter(saved: AdapterConfig, model: AdapterConfig) -> None:
    """Raise UserError unless a saved adapter belongs to this model, target set and block count."""
    check_base(saved, model.base_model, model.base_fingerprint)
    check_same_names("adapter", saved.num_blocks.keys(), model.num_blocks.keys())
    differing = [n for n, count in model.num_blocks.items() if saved.num_blocks[n] != count]
    if differing:
        name = differing[0]
        raise UserError(
            "adapter must have the num_blocks of the model's layers; got "
            f"num_blocks={saved.num_blocks[name]} in the adapter and "
            f"{model.num_blocks[name]} in the model for {name} and {len(differing) - 1} more"
        )


def check_covered(config: AdapterConfig, covered: Collection[str], modules: Iterable[str]) -> None:
    """Raise UserError unless an adapter has a delta for each module that its targets match.

    Other parts of a model, such as one that sees images, may have modules of the same names. So
    only those count that lie where one with a delta lies, but for the number of the decoder layer.

    Args:
        config: the adapter's config.
        covered: modules of the base that get a delta.
        modules: all linear layers of the base, by the same kind of name.
    """
    if config.targets is None:
        return
    places = {_place(name) for name in covered}
    missing = sorted(
        name
        for name in modules
        if name not in covered and _place(name) in places and config.targets.matches(name)
    )
    if missing:
        raise UserError(
            "an adapter must have a delta for each layer that its target_modules match; got none "
            f"for {some(missing)}"
        )


def _place(name: str) -> str:
    """Return what stands in a module's name before the number of its decoder layer."""
    return re.split(r"(?:^|\.)\d+\.", name, maxsplit=1)[0]


def write_adapter_files(folder: Path, tensors: Mapping[str, Tensor], config: AdapterConfig) -> None:
    """Write an adapter's two files into an existing folder.

    Raises:
        UserError: if the tensors are not those of the config's layers.
    """
    check_same_names("tensors", tensors.keys(), {f"{name}.delta" for name in config.num_blocks})
    renamed = {
        tensor_key(name.removesuffix(".delta")): tensor.float() for name, tensor in tensors.items()
    }
    save_tensors(folder / ADAPTER_TENSOR_FILE, renamed)
    commonest, pattern = compact_num_blocks(config.num_blocks)
    targets = config.targets
    if targets is None or targets.layers != config.num_blocks.keys():
        targets = targets_of(config.num_blocks)
    file = ConfigFile(
        base_model=config.base_model,
        targets=targets,
        num_blocks=commonest,
        num_blocks_pattern=pattern,
        dropout=config.dropout,
        base_fingerprint=config.base_fingerprint,
        num_deltas=len(tensors),
        step=config.step,
        heldout_loss=config.heldout_loss,
        library_versions=config.library_versions,
        parent=config.parent,
        revision=config.revision,
    )
    write_json(folder / ADAPTER_CONFIG_FILE, file.as_json())


def save_adapter(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: AdapterConfig,
    beside: Mapping[str, Any] | None = None,
) -> None:
    """Save an adapter as a folder, atomically.

    Args:
        folder: created, or replaced entirely.
        tensors: deltas by parameter name, ``[num_blocks, in_block, out_block]``.
        config: what the deltas belong to.
        beside: content of other files, by name: bytes, or the value of a JSON file.

    Raises:
        UserError: if a delta is missing, unknown, or not finite.
    """
    check_finite(tensors, folder)
    with new_folder(folder) as temporary:
        write_adapter_files(temporary, tensors, config)
        for name, value in (beside or {}).items():
            if isinstance(value, bytes):
                (temporary / name).write_bytes(value)
            else:
                write_json(temporary / name, value)


@dataclass(frozen=True)
class AdapterHeader:
    """An adapter's folder without the numbers of its deltas."""

    config: AdapterConfig
    file: Path
    """The tensor file."""
    keys: dict[str, str]
    """Name of each layer's delta in that file, by layer."""
    shapes: dict[str, tuple[list[int], str]]
    """Shape and dtype of each delta, by layer; ``[num_blocks, in_block, out_block]``."""


def load_adapter_header(folder: Path) -> AdapterHeader:
    """Read an adapter's config, and its tensors' names and shapes; both must agree.

    Raises:
        UserError: as `load_adapter` does, but for the numbers.
    """
    config, file, keys = _load_early(folder) if is_early(folder) else _load_present(folder)
    stored = tensor_shapes(file)
    shapes = {layer: stored[key] for layer, key in keys.items()}
    for layer, (shape, dtype) in shapes.items():
        check_shape(layer, shape, dtype, config.num_blocks[layer], file)
    return AdapterHeader(config, file, keys, shapes)


def load_adapter_config(folder: Path) -> AdapterConfig:
    """Read an adapter's config, with the layers that its tensor file has.

    Raises:
        UserError: if a file is missing or damaged, a value is wrong, or the two files disagree.
    """
    return load_adapter_header(folder).config


def load_adapter(folder: Path) -> tuple[dict[str, Tensor], AdapterConfig]:
    """Load an adapter's deltas (by parameter name, fp32, on the CPU) and its config.

    Raises:
        UserError: if a file is missing or damaged, a delta is missing, unknown, of another shape
            than the config has, or not finite.
    """
    header = load_adapter_header(folder)
    stored = load_tensors(header.file)
    tensors = {f"{layer}.delta": stored[key].float() for layer, key in header.keys.items()}
    check_finite(tensors, header.file)
    return tensors, header.config


def _load_present(folder: Path) -> tuple[AdapterConfig, Path, dict[str, str]]:
    path = folder / ADAPTER_TENSOR_FILE
    file = ConfigFile.load(folder / ADAPTER_CONFIG_FILE)
    keys = keys_by_layer(tensor_shapes(path), path)
    check_complete(file, list(keys), path)
    config = AdapterConfig(
        base_model=file.base_model,
        base_fingerprint=file.base_fingerprint,
        num_blocks=expand_num_blocks(keys, file.num_blocks, file.num_blocks_pattern),
        dropout=file.dropout,
        step=file.step,
        heldout_loss=file.heldout_loss,
        library_versions=file.library_versions,
        parent=file.parent,
        revision=file.revision,
        targets=dataclasses.replace(file.targets, layers=frozenset(keys)),
    )
    return config, path, keys


def _load_early(folder: Path) -> tuple[AdapterConfig, Path, dict[str, str]]:
    fields, path = load_early(folder)
    config = AdapterConfig(**fields)
    return config, path, {layer: f"{layer}.delta" for layer in config.num_blocks}
