"""Which linear layers of a model get a delta."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import cast

from torch import nn

from diablo_ds.adapter.base import LinearModule, is_linear
from diablo_ds.adapter.blocks import legal_num_blocks, nearest_num_blocks, num_blocks_for_share
from diablo_ds.errors import UserError

_SEPARATE = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
DEFAULT_TARGETS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo", "olmo2"), _SEPARATE),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "cohere", "cohere2"), _SEPARATE),
    **dict.fromkeys(("granite", "stablelm"), _SEPARATE),
    "phi": ("q_proj", "k_proj", "v_proj", "fc1", "fc2"),
    "phi3": ("qkv_proj", "gate_up_proj", "down_proj"),
    "gpt_neox": ("query_key_value", "dense_h_to_4h", "dense_4h_to_h"),
    "opt": ("q_proj", "k_proj", "v_proj", "fc1", "fc2"),
}
"""Target layers by the model type of the Hugging Face config: query, key, value, up and down."""


def select_targets(
    model: nn.Module,
    targets: tuple[str, ...],
    *,
    layers: str = "",
    model_type: str = "",
    within: str = "",
) -> dict[str, LinearModule]:
    """Choose the linear layers that get a delta, among those that `diablo_ds.adapter.base` knows.

    Args:
        model: the base model.
        targets: each a module name or its last parts ("q_proj", "mlp.up_proj"), a shell pattern
            on the full name ("model.layers.*.mlp.*_proj") or "re:" and a regular expression that
            matches the full name. Empty for the defaults of ``model_type``.
        layers: decoder layers to keep, e.g. "0-3,8"; empty for all.
        model_type: the model's type in its Hugging Face config.
        within: name of the module that targets must lie in; empty for the entire model.

    Returns:
        Layers by full module name, in model order.

    Raises:
        UserError: if a target or a layer number matches nothing, or no default is known.
    """
    embeddings, prefix = _embedding_weights(model), f"{within}." if within else ""
    linears = {
        name: cast("LinearModule", module)
        for name, module in model.named_modules()
        if is_linear(module)
        and name.startswith(prefix)
        and not any(id(p) in embeddings for p in module.parameters(recurse=False))
    }
    suffixes = sorted({name.rpartition(".")[2] for name in linears})
    if not targets:
        defaults = _default_targets(model_type, suffixes)
        if not defaults:
            raise UserError(
                "targets must be given for a model type without defaults; got "
                f"model_type={model_type!r}; linear layers of this model: {', '.join(suffixes)}"
            )
        targets = defaults
    chosen: set[str] = set()
    for target in targets:
        matched = {name for name in linears if _matches(name, target)}
        if not matched:
            raise UserError(
                f"each target must match at least one linear layer; got target={target!r}; "
                f"linear layers of this model: {', '.join(suffixes)}"
            )
        chosen |= matched
    if layers:
        chosen = _keep_layers(chosen, layers)
    return {name: linear for name, linear in linears.items() if name in chosen}


def _default_targets(model_type: str, suffixes: Sequence[str]) -> tuple[str, ...]:
    """Return a type's own targets or, without any, those of a family with such names."""
    similar = (names for names in DEFAULT_TARGETS.values() if set(names) <= set(suffixes))
    return DEFAULT_TARGETS.get(model_type) or next(similar, ())


def _embedding_weights(model: nn.Module) -> set[int]:
    """Return the ids of embeddings' weights: a delta of a layer that is tied would change both."""
    return {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}


def _matches(name: str, target: str) -> bool:
    if target.startswith("re:"):
        return re.fullmatch(target[3:], name) is not None
    if any(c in target for c in "*?["):
        return fnmatch.fnmatchcase(name, target)
    return name == target or name.endswith("." + target)


def layer_number(name: str) -> int | None:
    """Return the decoder layer a module name lies in, e.g. 3 for "model.layers.3.mlp.up_proj"."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _keep_layers(names: set[str], layers: str) -> set[str]:
    present = {number for name in names if (number := layer_number(name)) is not None}
    kept: set[int] = set()
    for part in layers.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise UserError(
                f"layers must be numbers and ranges such as 0-3,8; got layers={layers!r}"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        wanted = set(range(first, last + 1))
        if not wanted or not wanted <= present:
            raise UserError(
                "layers must be ranges of existing decoder layers; got "
                f"layers={layers!r}, part={part.strip()!r}; target layers lie in "
                f"{min(present, default='none')} to {max(present, default='none')}"
            )
        kept |= wanted
    return {name for name in names if layer_number(name) in kept}


def resolve_num_blocks(linears: Mapping[str, LinearModule], num_blocks: str) -> dict[str, int]:
    """Decide the block count of each target layer.

    Args:
        linears: target layers by name.
        num_blocks: a count for all layers, or "auto:<share>" for the legal count nearest to that
            trainable share of each layer, e.g. "auto:0.01" or "auto:1%".

    Raises:
        UserError: if the count does not divide a layer's widths; lists each such layer, its
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
        raise UserError(
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
        raise UserError(
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
        raise UserError(
            'num_blocks="auto:<share>" needs a share in (0, 1], e.g. auto:0.01 or auto:1%; '
            f"got num_blocks={num_blocks!r}"
        )
    return share
