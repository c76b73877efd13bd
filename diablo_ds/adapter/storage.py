"""Adapters on disk.

An adapter is all deltas of a model plus what is needed to attach them again: a folder with
`adapter.safetensors` (one fp32 tensor ``<layer>.delta`` per target layer) and `adapter.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from diablo_ds.errors import UserError
from diablo_ds.files.atomic import new_folder, read_json, write_json
from diablo_ds.files.layout import ADAPTER_CONFIG_FILE, ADAPTER_TENSOR_FILE
from diablo_ds.files.strict_json import key_list
from diablo_ds.files.whole_tensors import load_tensors, save_tensors

ADAPTER_FORMAT = 1


@dataclass(frozen=True)
class AdapterConfig:
    """What identifies an adapter: base model, target layers and their block counts."""

    base_model: str
    """Name or folder of the base model the deltas belong to."""
    base_fingerprint: str
    """Fingerprint of the base weights; empty where the base was not read from files."""
    num_blocks: dict[str, int]
    """Block count of each target layer, by the layer's full module name."""
    dropout: float = 0.0
    """Dropout on the adapter's input, as trained."""
    format: int = field(default=ADAPTER_FORMAT)
    """Version of the file format."""


def check_same_names(what: str, got: Set[str], wanted: Set[str]) -> None:
    """Raise UserError unless two sets of names are equal; shows up to three of each side."""
    missing, unknown = sorted(wanted - got), sorted(got - wanted)
    if missing or unknown:
        raise UserError(
            f"{what} must have exactly the target layers of the model; got "
            f"{len(missing)} missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]}; "
            "use the targets, layers and num_blocks it was made with"
        )


def check_adapter(saved: AdapterConfig, model: AdapterConfig) -> None:
    """Raise UserError unless a saved adapter belongs to this model, target set and block count."""
    known = saved.base_fingerprint and model.base_fingerprint
    if known and saved.base_fingerprint != model.base_fingerprint:
        raise UserError(
            "adapter must be loaded on the base model it was trained on; got an adapter of "
            f"{saved.base_model!r} (fingerprint {saved.base_fingerprint[:12]}) on "
            f"{model.base_model!r} (fingerprint {model.base_fingerprint[:12]})"
        )
    check_same_names("adapter", saved.num_blocks.keys(), model.num_blocks.keys())
    differing = [n for n, count in model.num_blocks.items() if saved.num_blocks[n] != count]
    if differing:
        name = differing[0]
        raise UserError(
            "adapter must have the num_blocks of the model's layers; got "
            f"num_blocks={saved.num_blocks[name]} in the adapter and "
            f"{model.num_blocks[name]} in the model for {name} and {len(differing) - 1} more"
        )


def write_adapter_files(folder: Path, tensors: Mapping[str, Tensor], config: AdapterConfig) -> None:
    """Write an adapter's two files into an existing folder."""
    save_tensors(folder / ADAPTER_TENSOR_FILE, tensors)
    write_json(folder / ADAPTER_CONFIG_FILE, asdict(config))


def save_adapter(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: AdapterConfig,
    beside: Mapping[str, Any] | None = None,
) -> None:
    """Save an adapter as a folder, atomically.

    Args:
        folder: created, or replaced entirely.
        tensors: deltas by parameter name, ``[num_blocks, in_block, out_block]``, fp32.
        config: what the deltas belong to.
        beside: values of other JSON files, by name.
    """
    with new_folder(folder) as temporary:
        write_adapter_files(temporary, tensors, config)
        for name, value in (beside or {}).items():
            write_json(temporary / name, value)


def load_adapter_config(folder: Path) -> AdapterConfig:
    """Read `adapter.json`.

    Raises:
        UserError: if the file is missing, is not JSON, is of another format, or a value is wrong.
    """
    file = folder / ADAPTER_CONFIG_FILE
    value = read_json(file)
    if not isinstance(value, dict) or value.get("format") != ADAPTER_FORMAT:
        raise UserError(f"adapter must have format {ADAPTER_FORMAT}; got {file}")
    fields_wanted = {field.name for field in fields(AdapterConfig)}
    if value.keys() != fields_wanted:
        raise UserError(
            f"{ADAPTER_CONFIG_FILE} must have the fields {', '.join(sorted(fields_wanted))}; got "
            f"{key_list(value, 12)} in {folder}"
        )
    config = AdapterConfig(**value)
    blocks, dropout = config.num_blocks, config.dropout
    rules = {
        "base_model must be text": isinstance(config.base_model, str),
        "base_fingerprint must be text": isinstance(config.base_fingerprint, str),
        "num_blocks must be an integer from 1 for each layer": isinstance(blocks, dict)
        and all(type(number) is int and number >= 1 for number in blocks.values()),
        "dropout must be from 0 to 1": type(dropout) in (int, float) and 0 <= dropout < 1,
    }
    if broken := [rule for rule, holds in rules.items() if not holds]:
        raise UserError(f"{broken[0]}; got another value in {file}")
    return config


def load_adapter(folder: Path) -> tuple[dict[str, Tensor], AdapterConfig]:
    """Load an adapter's deltas (by parameter name, fp32, on the CPU) and its config.

    Raises:
        UserError: if a file is missing, damaged, or the two files disagree.
    """
    config = load_adapter_config(folder)
    tensors = load_tensors(folder / ADAPTER_TENSOR_FILE)
    shapes = {name: (list(t.shape), str(t.dtype)) for name, t in tensors.items()}
    check_shapes(shapes, config, folder)
    return tensors, config


def check_shapes(
    shapes: Mapping[str, tuple[list[int], str]], config: AdapterConfig, folder: Path
) -> None:
    """Raise UserError unless an adapter's tensors are the deltas that its config names.

    Args:
        shapes: shape and dtype of each tensor.
        config: the config.
        folder: the adapter's.
    """
    wanted = {f"{name}.delta" for name in config.num_blocks}
    check_same_names(ADAPTER_TENSOR_FILE, shapes.keys(), wanted)
    for name, number in config.num_blocks.items():
        shape, _ = shapes[f"{name}.delta"]
        if len(shape) != 3 or shape[0] != number:
            raise UserError(
                "a delta must have the shape [num_blocks, in_block, out_block]; got "
                f"{shape} for {name}.delta with num_blocks={number} in {folder}"
            )
