"""The adapter that turns one checkpoint into another, and what no adapter can hold of it.

Both checkpoints are read in rows, twice: first to see what changed and where, which decides the
block counts, then to take the diagonal blocks out. No weight has to fit into memory.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from diablo_ds.adapter.base import LinearModule
from diablo_ds.adapter.blocks import legal_num_blocks
from diablo_ds.adapter.layer_names import targets_of
from diablo_ds.adapter.storage import AdapterConfig
from diablo_ds.adapter.targets import resolve_num_blocks, select_targets
from diablo_ds.conversion.card import save_with_card
from diablo_ds.conversion.changes import Change, Pair, find_change, take_blocks
from diablo_ds.conversion.output import check_new_folder, check_outside
from diablo_ds.errors import UserError
from diablo_ds.files.hub import revision_of
from diablo_ds.files.tensor_files import find_tensors
from diablo_ds.files.text_table import text_table
from diablo_ds.model.architecture import build_meta_model, load_model_config
from diablo_ds.model.finding import find_model, fingerprint, lasting_name
from diablo_ds.model.weight_names import find_weights
from diablo_ds.ranks.progress import BYTES, Progress


@dataclass(frozen=True)
class LayerDifference:
    """What changed in a layer: Frobenius norms of the change in its weight."""

    layer: str
    num_blocks: int
    inside: float
    """Of the diagonal blocks, which the adapter holds."""
    outside: float
    """Of all other elements, which it cannot hold."""


@dataclass(frozen=True)
class Difference:
    """What changed between two checkpoints."""

    layers: tuple[LayerDifference, ...]
    """Those with a delta."""
    unheld: dict[str, str]
    """What no delta holds, by tensor name, in words."""

    def text(self) -> str:
        """Return a table of the layers, and what is lost."""
        header = ("layer", "num_blocks", "norm inside", "norm outside", "lost")
        rows = [
            (layer.layer, layer.num_blocks, *_norms(layer.inside, layer.outside))
            for layer in self.layers
        ]
        inside, outside = (
            math.hypot(*(getattr(layer, name) for layer in self.layers))
            for name in ("inside", "outside")
        )
        total = ("all of them", "", *_norms(inside, outside))
        lines = [text_table([header, *rows, total], left={0})]
        if self.unheld:
            lines += [
                f"Changed, and in no delta: {len(self.unheld)} tensors",
                *(f"  {name}: {what}" for name, what in self.unheld.items()),
            ]
        if self.unheld or outside:
            lines.append("Base and adapter together are not the tuned model; see above")
        else:
            lines.append("The adapter holds all of the change")
        return "\n".join(lines)


def _norms(inside: float, outside: float) -> tuple[str, str, str]:
    total = math.hypot(inside, outside)
    lost = outside / total if total else 0.0
    return f"{inside:.4g}", f"{outside:.4g}", f"{lost:.2%}"


def diff(
    base: str, tuned: str, output: Path, *, num_blocks: str = "", targets: tuple[str, ...] = ()
) -> Difference:
    """Write the adapter whose deltas are the diagonal blocks of the change from base to tuned.

    Differences are computed in fp64 and rounded once to fp32. What changed outside the blocks, and
    in other tensors, is reported and lost.

    Args:
        base: name or folder of the base model.
        tuned: name or folder of a model of the same architecture.
        output: a new folder.
        num_blocks: block count, or "auto:<share>"; where empty, the largest legal count is taken
            that holds the entire change, found apart for layers of each name and shape.
        targets: which layers get a delta, as in training; all linear layers that changed by
            default.

    Raises:
        UserError: if the models are of different architectures or equal, a number is not finite,
            no block count holds everything and none was given, or ``output`` exists or lies in a
            model.
    """
    check_new_folder(output)
    base_folder, tuned_folder = find_model(base), find_model(tuned)
    check_outside(output, (base_folder, tuned_folder))
    model = build_meta_model(load_model_config(base_folder))
    model_type = model.config.get_text_config().model_type
    linears = select_targets(model, targets or ("*",), model_type=model_type)
    pairs, unheld = _pair(base_folder, tuned_folder)
    layers = find_weights(base_folder, find_tensors(base_folder), linears)
    if missing := [layer for layer, name in layers.items() if name not in pairs]:
        raise UserError(
            "both checkpoints must hold each layer's weight, in the same shape; got "
            f"{len(missing)} layers without, e.g. {missing[0]}, in {base_folder} and "
            f"{tuned_folder}"
        )
    changes = _find_changes(pairs, {name: layer for layer, name in layers.items()})
    changed = {layer: changes[name] for layer, name in layers.items() if changes[name]}
    if targets and num_blocks:
        counts = resolve_num_blocks(linears, num_blocks)
    elif num_blocks:
        counts = _divisible({layer: linears[layer] for layer in changed}, num_blocks)
    else:
        wanted = linears if targets else {layer: linears[layer] for layer in changed}
        counts = _find_num_blocks(changed, wanted)
    held = {layers[layer] for layer in counts}
    unheld |= {
        name: f"norm of the change {change.norm:.3g}"
        for name, change in changes.items()
        if change and name not in held
    }
    if not changed or not counts:
        raise UserError(
            "the tuned model must differ from the base in weights of linear layers; got "
            f"{'no change' if not unheld else f'changes in {min(unheld)} only'} between "
            f"{base_folder} and {tuned_folder}"
        )
    tensors, found = _take_out(pairs, layers, counts)
    if not any(layer.inside for layer in found):
        raise UserError(
            "diagonal blocks must hold some of the change; got none inside the blocks of "
            f"{len(found)} layers; use fewer blocks"
        )
    config = AdapterConfig(
        base_model=lasting_name(base),
        base_fingerprint=fingerprint(base_folder),
        num_blocks=counts,
        parent={"tuned_model": tuned, "tuned_fingerprint": fingerprint(tuned_folder)},
        revision=revision_of(base_folder) or None,
        targets=targets_of(counts, dict(model.named_modules())),
    )
    save_with_card(output, tensors, config)
    return Difference(found, dict(sorted(unheld.items())))


def _pair(base: Path, tuned: Path) -> tuple[dict[str, Pair], dict[str, str]]:
    """Return the tensors that both checkpoints have in one shape, and what is said of others."""
    if base.resolve() == tuned.resolve():
        raise UserError(f"base and tuned must be two models; got {base} for both")
    ours, theirs = find_tensors(base), find_tensors(tuned)
    pairs, unheld = {}, {}
    for name, tensor in ours.items():
        if name not in theirs:
            unheld[name] = "only in the base"
        elif tensor.shape != theirs[name].shape:
            unheld[name] = f"shape {list(tensor.shape)} became {list(theirs[name].shape)}"
        else:
            pairs[name] = Pair(name, tensor, theirs[name])
    return pairs, unheld | {name: "only in the tuned model" for name in theirs.keys() - ours.keys()}


def _find_changes(pairs: Mapping[str, Pair], weights: Collection[str]) -> dict[str, Change]:
    changes = {}
    total = sum(pair.num_bytes for pair in pairs.values())
    with Progress("Comparing", total, BYTES) as progress:
        for name, pair in pairs.items():
            changes[name] = find_change(pair, with_place=name in weights)
            progress.advance(pair.num_bytes)
    return changes


def _find_num_blocks(
    changed: Mapping[str, Change], wanted: Mapping[str, LinearModule]
) -> dict[str, int]:
    """Return the block count of each layer, one for all layers of a name and shape.

    Args:
        changed: the layers that changed.
        wanted: layers that shall have a delta; those like which no other changed are skipped.

    Raises:
        UserError: if some change lies outside the diagonal blocks of any count above 1.
    """
    groups: dict[tuple[str, int, int], list[str]] = {}
    for layer, change in changed.items():
        groups.setdefault(_group(layer, change), []).append(layer)
    found: dict[tuple[str, int, int], int] = {}
    full = []
    for group, layers in groups.items():
        legal = reversed(legal_num_blocks(*group[1:]))
        found[group] = next(n for n in legal if all(changed[layer].fits(n) for layer in layers))
        if found[group] == 1:
            full += [layer for layer in layers if not _fits_any(changed[layer])] or layers
    if full:
        raise UserError(
            "num_blocks must be given where the change lies in no diagonal blocks; got "
            f"{len(full)} layers that changed elsewhere too, e.g. {full[0]}; give --num-blocks, "
            "and the report says what was lost, or choose other layers by --targets"
        )
    of_layer = {layer: found.get(_group(layer, linear)) for layer, linear in wanted.items()}
    return {layer: count for layer, count in of_layer.items() if count is not None}


def _group(layer: str, linear: LinearModule | Change) -> tuple[str, int, int]:
    return layer.rpartition(".")[2], linear.in_features, linear.out_features


def _fits_any(change: Change) -> bool:
    return any(
        change.fits(n) for n in legal_num_blocks(change.in_features, change.out_features)[1:]
    )


def _divisible(linears: Mapping[str, LinearModule], num_blocks: str) -> dict[str, int]:
    """Return the block counts of the layers that can have such deltas."""
    counts: dict[str, int] = {}
    refusal: UserError | None = None
    for layer, linear in linears.items():
        try:
            counts |= resolve_num_blocks({layer: linear}, num_blocks)
        except UserError as error:
            refusal = error
    if refusal and not counts:
        raise refusal
    return counts


def _take_out(
    pairs: Mapping[str, Pair], layers: Mapping[str, str], counts: Mapping[str, int]
) -> tuple[dict[str, Tensor], tuple[LayerDifference, ...]]:
    total = sum(pairs[layers[layer]].num_bytes for layer in counts)
    tensors, found = {}, []
    with Progress("Taking the blocks out", total, BYTES) as progress:
        for layer, count in counts.items():
            pair = pairs[layers[layer]]
            blocks, outside = take_blocks(pair, count)
            tensors[f"{layer}.delta"] = blocks.float()
            found.append(LayerDifference(layer, count, float(blocks.norm()), outside))
            progress.advance(pair.num_bytes)
    return tensors, tuple(found)
