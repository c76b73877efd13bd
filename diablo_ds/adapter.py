"""Adapters: attach deltas, merge, save and load.

An adapter is all deltas of a model plus what is needed to attach them again. On disk it is a
folder with `adapter.safetensors` (one fp32 tensor ``<layer>.delta`` per target layer) and
`adapter.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diablo_ds.blocks import legal_num_blocks, nearest_num_blocks, num_blocks_for_share
from diablo_ds.files import new_folder, read_json, write_json
from diablo_ds.layers import DiaBloLinear
from diablo_ds.strict_json import key_list
from diablo_ds.targets import layer_number as layer_number
from diablo_ds.targets import select_targets as select_targets
from diablo_ds.whole_tensors import load_tensors, save_tensors

ADAPTER_FORMAT = 1
TENSOR_FILE, CONFIG_FILE = "adapter.safetensors", "adapter.json"


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


def resolve_num_blocks(linears: Mapping[str, nn.Linear], num_blocks: str) -> dict[str, int]:
    """Decide the block count of each target layer.

    Args:
        linears: target layers by name.
        num_blocks: a count for all layers, or "auto:<share>" for the legal count nearest to that
            trainable share of each layer, e.g. "auto:0.01" or "auto:1%".

    Raises:
        ValueError: if the count does not divide a layer's widths; lists each such layer, its
            widths and the nearest counts that work.
    """
    if num_blocks.startswith("auto:"):
        share = _parse_share(num_blocks)
        return {
            name: num_blocks_for_share(m.in_features, m.out_features, share)
            for name, m in linears.items()
        }
    try:
        count = int(num_blocks)
    except ValueError:
        raise ValueError(
            f'num_blocks must be a number or "auto:<share>"; got num_blocks={num_blocks!r}'
        ) from None
    bad: dict[tuple[int, int], list[str]] = {}
    for name, linear in linears.items():
        if count not in legal_num_blocks(linear.in_features, linear.out_features):
            bad.setdefault((linear.in_features, linear.out_features), []).append(name)
    if bad:
        lines = [
            f"  {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: "
            f"in_features={widths[0]}, out_features={widths[1]}; nearest that work: "
            + ", ".join(map(str, nearest_num_blocks(*widths, count)))
            for widths, names in bad.items()
        ]
        raise ValueError(
            "num_blocks must divide both widths of every target layer; got "
            f"num_blocks={count} with\n" + "\n".join(lines) + '\nor use "auto:<share>"'
        )
    return dict.fromkeys(linears, count)


def _parse_share(num_blocks: str) -> float:
    text = num_blocks.removeprefix("auto:").strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ValueError(
            'num_blocks="auto:<share>" needs a share in (0, 1], e.g. auto:0.01 or auto:1%; '
            f"got num_blocks={num_blocks!r}"
        )
    return share


def attach(
    model: nn.Module,
    num_blocks: Mapping[str, int],
    *,
    dropout: float = 0.0,
    delta_path: str = "fused",
    device: torch.device | str | None = None,
) -> dict[str, nn.Parameter]:
    """Freeze the model and give the named linear layers a delta, in place.

    Args:
        model: the base model; its parameters may be partitioned by ZeRO-3.
        num_blocks: block count by the full module name of the layer.
        dropout: share of the adapter's input that is zeroed while training, in [0, 1).
        delta_path: one of `diablo_ds.layers.DELTA_PATHS`.
        device: device of the deltas; that of the weights by default.

    Returns:
        The deltas by parameter name, in model order.
    """
    model.requires_grad_(False)
    for name, count in num_blocks.items():
        parent_name, _, child_name = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        linear = getattr(parent, child_name)
        layer = DiaBloLinear.from_linear(
            linear, num_blocks=count, dropout=dropout, delta_path=delta_path, device=device
        )
        setattr(parent, child_name, layer)
    return named_deltas(model)


def diablo_layers(model: nn.Module) -> dict[str, DiaBloLinear]:
    """Return the layers that own a delta, by module type, never by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, DiaBloLinear)}


def named_deltas(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the deltas by parameter name, in model order."""
    return {f"{name}.delta": layer.delta for name, layer in diablo_layers(model).items()}


def merge(model: nn.Module) -> None:
    """Add every delta to its base weight, in place. The weights must not be partitioned."""
    for layer in diablo_layers(model).values():
        layer.merge()


def unmerge(model: nn.Module) -> None:
    """Undo `merge`, up to the rounding of the weights' dtype."""
    for layer in diablo_layers(model).values():
        layer.unmerge()


@torch.no_grad()
def load_deltas(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy delta values into an attached model, strictly: names and shapes must agree.

    Args:
        model: a model with deltas that DeepSpeed has not taken over yet.
        tensors: values by parameter name, ``[num_blocks, in_block, out_block]``, cast to the
            dtype of the model's deltas.

    Raises:
        ValueError: if a delta is missing, unknown or of another shape.
    """
    deltas = named_deltas(model)
    check_same_keys("adapter", tensors, deltas)
    for name, delta in deltas.items():
        if tensors[name].shape != delta.shape:
            raise ValueError(
                f"adapter delta must have the shape of the model's; got {name} of shape "
                f"{list(tensors[name].shape)}, the model's is {list(delta.shape)}"
            )
    for name, delta in deltas.items():
        delta.copy_(tensors[name])


def check_same_keys(what: str, got: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise ValueError unless two mappings have the same keys; names up to three of each side."""
    missing, unknown = sorted(wanted.keys() - got.keys()), sorted(got.keys() - wanted.keys())
    if missing or unknown:
        raise ValueError(
            f"{what} must have exactly the target layers of the model; got "
            f"{len(missing)} missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]}; "
            "use the targets, layers and num_blocks it was made with"
        )


def check_adapter(saved: AdapterConfig, model: AdapterConfig) -> None:
    """Raise ValueError unless a saved adapter belongs to this model, target set and block count."""
    known = saved.base_fingerprint and model.base_fingerprint
    if known and saved.base_fingerprint != model.base_fingerprint:
        raise ValueError(
            "adapter must be loaded on the base model it was trained on; got an adapter of "
            f"{saved.base_model!r} (fingerprint {saved.base_fingerprint[:12]}) on "
            f"{model.base_model!r} (fingerprint {model.base_fingerprint[:12]})"
        )
    check_same_keys("adapter", saved.num_blocks, model.num_blocks)
    differing = [n for n, count in model.num_blocks.items() if saved.num_blocks[n] != count]
    if differing:
        name = differing[0]
        raise ValueError(
            "adapter must have the num_blocks of the model's layers; got "
            f"num_blocks={saved.num_blocks[name]} in the adapter and "
            f"{model.num_blocks[name]} in the model for {name} and {len(differing) - 1} more"
        )


def write_adapter_files(folder: Path, tensors: Mapping[str, Tensor], config: AdapterConfig) -> None:
    """Write an adapter's two files into an existing folder."""
    save_tensors(folder / TENSOR_FILE, tensors)
    write_json(folder / CONFIG_FILE, asdict(config))


def save_adapter(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: AdapterConfig,
    beside: Mapping[str, Any] | None = None,
) -> None:
    """Save an adapter as a folder, atomically.

    Args:
        folder: created, or replaced as a whole.
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
        ValueError: if the file is missing, is not JSON, is of another format, or a value is wrong.
    """
    value = read_json(folder / CONFIG_FILE)
    if not isinstance(value, dict) or value.get("format") != ADAPTER_FORMAT:
        raise ValueError(f"adapter must have format {ADAPTER_FORMAT}; got {folder / CONFIG_FILE}")
    fields_wanted = {field.name for field in fields(AdapterConfig)}
    if value.keys() != fields_wanted:
        raise ValueError(
            f"adapter.json must have the fields {', '.join(sorted(fields_wanted))}; got "
            f"{key_list(value, 12)} in {folder}"
        )
    config = AdapterConfig(**value)
    blocks, dropout = config.num_blocks, config.dropout
    rules = {
        "base_model must be text": isinstance(config.base_model, str),
        "base_fingerprint must be text": isinstance(config.base_fingerprint, str),
        "num_blocks must be a whole number from 1 for each layer": isinstance(blocks, dict)
        and all(type(number) is int and number >= 1 for number in blocks.values()),
        "dropout must be from 0 to 1": type(dropout) in (int, float) and 0 <= dropout < 1,
    }
    if broken := [rule for rule, holds in rules.items() if not holds]:
        raise ValueError(f"{broken[0]}; got another value in {folder / CONFIG_FILE}")
    return config


def load_adapter(folder: Path) -> tuple[dict[str, Tensor], AdapterConfig]:
    """Load an adapter's deltas (by parameter name, fp32, on the CPU) and its config.

    Raises:
        ValueError: if a file is missing, damaged, or the two files disagree.
    """
    config = load_adapter_config(folder)
    tensors = load_tensors(folder / TENSOR_FILE)
    shapes = {name: (list(t.shape), str(t.dtype)) for name, t in tensors.items()}
    check_shapes(shapes, config, folder)
    return tensors, config


def check_shapes(
    shapes: Mapping[str, tuple[list[int], str]], config: AdapterConfig, folder: Path
) -> None:
    """Raise ValueError unless an adapter's tensors are the deltas that its config names.

    Args:
        shapes: shape and dtype of each tensor.
        config: the config.
        folder: the adapter's.
    """
    check_same_keys(TENSOR_FILE, shapes, {f"{name}.delta": 0 for name in config.num_blocks})
    for name, number in config.num_blocks.items():
        shape, _ = shapes[f"{name}.delta"]
        if len(shape) != 3 or shape[0] != number:
            raise ValueError(
                "a delta must have the shape [num_blocks, in_block, out_block]; got "
                f"{shape} for {name}.delta with num_blocks={number} in {folder}"
            )
