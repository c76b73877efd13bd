"""The saved adapter that a new run starts from: read, and held against the base and the settings.

Only its deltas are taken, as fp32 master copies; optimizer, schedule and data begin anew. What the
run continues from later are its own checkpoints, of which the first, of step 0, holds these deltas.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diablo_ds.adapter.base import is_linear
from diablo_ds.adapter.storage import (
    AdapterConfig,
    check_base,
    check_covered,
    load_adapter,
    load_adapter_config,
)
from diablo_ds.adapter.targets import resolve_num_blocks, select_targets
from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.files.layout import list_checkpoints
from diablo_ds.model.architecture import text_decoder_name
from diablo_ds.ranks.log import logger
from diablo_ds.zero.engine import EngineState
from diablo_ds.zero.optimizer_state import MOMENTS


@dataclass(frozen=True)
class InitialAdapter:
    """An adapter that fits the base of a run."""

    folder: Path
    masters: Mapping[str, Tensor]
    """The deltas by name, ``[num_blocks, in_block, out_block]``, fp32, on the CPU."""
    config: AdapterConfig
    digest: str
    """SHA-256 over the deltas' names, shapes and values."""

    def engine_state(self) -> EngineState:
        """Return the state of an engine that has these deltas and took no step."""
        deltas = {
            name: {"master": master, **{key: torch.zeros_like(master) for key in MOMENTS}}
            for name, master in self.masters.items()
        }
        return EngineState(deltas, 0, {})

    def lineage(self) -> dict[str, Any]:
        """Return what a run records of the adapter that it started from, and that one's own."""
        values = {
            "folder": str(self.folder),
            "digest": self.digest,
            "step": self.config.step,
            "heldout_loss": self.config.heldout_loss,
            "parent": self.config.parent,
        }
        return {name: value for name, value in values.items() if value is not None}

    def describe(self) -> str:
        """Return where the deltas come from, as a line of text."""
        config, facts = self.config, [f"digest {self.digest[:12]}"]
        if config.step is not None:
            facts.append(f"step {config.step}")
        if config.heldout_loss is not None:
            facts.append(f"held-out loss {config.heldout_loss:.4f}")
        return f"starts from the adapter {self.folder} ({', '.join(facts)})"


def load_initial_adapter(
    folder: Path, run_config: RunConfig, shapes: Any, base_fingerprint: str
) -> InitialAdapter:
    """Read an adapter, and make sure that it fits.

    Args:
        folder: the adapter's files.
        run_config: names the base and, where they are given, targets, layers and block count.
        shapes: the base model on the meta device.
        base_fingerprint: of the base files.

    Raises:
        UserError: if it is damaged, has values that are not finite, belongs to another base, or
            differs from the layers or block counts of the base or of the settings.
    """
    masters, config = load_adapter(folder)
    try:
        check_base(config, run_config.model, base_fingerprint)
    except UserError as error:
        raise UserError(f"{error}; give the --model that the adapter was trained on") from None
    if not config.base_fingerprint:
        logger.warning(
            f"The adapter {folder} does not record its base: that it is {run_config.model!r} is "
            "not checked beyond the names and widths of layers"
        )
    modules = dict(shapes.named_modules())
    try:
        _check_layers(masters, config.num_blocks, modules)
        linears = [name for name, module in modules.items() if is_linear(module)]
        check_covered(config, config.num_blocks, linears)
    except UserError as error:
        raise UserError(f"{error}, in the adapter {folder}") from None
    _check_settings(run_config, config.num_blocks, shapes)
    return InitialAdapter(folder, masters, config, digest_tensors(masters))


def saved_num_blocks(checkpoints: Path) -> dict[str, int]:
    """Return the block counts of a run that continues, from its latest checkpoint that has them.

    Raises:
        UserError: if none can be read.
    """
    problem = None
    for folder in list_checkpoints(checkpoints):
        try:
            return load_adapter_config(folder).num_blocks
        except UserError as error:
            problem = problem or error
    raise UserError(
        f"at least one checkpoint must be intact; got {problem}; remove {checkpoints} to start over"
    )


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, shapes and values of tensors, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_layers(
    masters: Mapping[str, Tensor], num_blocks: Mapping[str, int], modules: Mapping[str, Any]
) -> None:
    """Raise UserError unless each delta fits a linear layer of the base."""
    for layer in num_blocks:
        module = modules.get(layer)
        if module is None or not is_linear(module):
            raise UserError(
                f"an adapter's layers must be linear layers of the base; got {layer}, which is none"
            )
        widths = (module.in_features, module.out_features)
        count, in_block, out_block = masters[f"{layer}.delta"].shape
        if (count * in_block, count * out_block) != widths:
            raise UserError(
                "num_blocks times in_block and out_block must be the widths of the base's layer; "
                f"got num_blocks={count}, in_block={in_block}, out_block={out_block} for {layer} "
                f"with in_features={widths[0]}, out_features={widths[1]}"
            )


def _check_settings(run_config: RunConfig, num_blocks: Mapping[str, int], shapes: Any) -> None:
    """Raise UserError where settings that were given ask for another geometry than the adapter's.

    Those that are left out are the adapter's.
    """
    own = tuple(num_blocks)
    chosen = select_targets(
        shapes,
        run_config.targets or own,
        layers=run_config.layers,
        model_type=shapes.config.get_text_config().model_type,
        within=text_decoder_name(shapes),
    )
    if chosen.keys() != num_blocks.keys():
        missing = sorted(num_blocks.keys() - chosen.keys())
        unknown = sorted(chosen.keys() - num_blocks.keys())
        raise UserError(
            "targets and layers must choose the initial adapter's layers; got "
            f"targets={list(run_config.targets)}, layers={run_config.layers!r}: {len(missing)} of "
            f"its {len(own)} layers not chosen {missing[:3]}, {len(unknown)} more {unknown[:3]}; "
            "leave out --targets and --layers"
        )
    if not run_config.num_blocks:
        return
    wanted = resolve_num_blocks(chosen, run_config.num_blocks)
    if differing := [layer for layer, count in num_blocks.items() if wanted[layer] != count]:
        layer = differing[0]
        raise UserError(
            "num_blocks must be the initial adapter's; got "
            f"num_blocks={run_config.num_blocks!r} with {num_blocks[layer]} in the adapter for "
            f"{layer} and {len(differing) - 1} more; leave out --num-blocks"
        )
