"""What a run is about to do, on one screen, before the model is loaded."""

from __future__ import annotations

import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from diablo_ds.model.architecture import decoder_layers
from diablo_ds.ranks import distributed
from diablo_ds.training.evaluations import interval
from diablo_ds.training.preparing import Prepared
from diablo_ds.training.resuming import Position

_LABEL = 11
_EXAMPLE_CHARACTERS = 500
_STAGES = (
    "base, gradients and optimizer state on every rank",
    "base on every rank, optimizer state sharded",
    "base on every rank, gradients and optimizer state sharded",
    "base and optimizer state sharded",
)
"""By ZeRO stage; deltas are on every rank."""


def start_screen(prepared: Prepared, position: Position, folder: Path, columns: int) -> str:
    """Return model, data, batch, placement and numbers of a run as a table.

    Args:
        prepared: the run.
        position: where it begins or continues.
        folder: the run folder.
        columns: of the terminal; 0 for lines of any length, as a log file has them.
    """
    run_config, inputs = prepared.run_config, prepared.inputs
    described = inputs.describe(run_config, distributed.world_size(), position.num_steps)
    rows = [
        ("run", _run_text(position, folder)),
        ("model", _model_text(prepared)),
        ("trained", _trained_text(prepared)),
        ("numbers", _numbers_text(prepared)),
        ("placement", _placement_text(prepared)),
        *map(_labelled, _lines(described)),
    ]
    if prepared.tasks is not None:
        rows += [("tasks", line) for line in _lines(prepared.tasks.describe())]
    rows.append(("schedule", _schedule_text(prepared, position)))
    width = max(40, columns - _LABEL - 1) if columns else 0
    return "\n".join(line for label, text in rows for line in _row(label, text, width))


def shown_example(text: str) -> str:
    """Return the first example for the start of a run, cut where it is long."""
    cut = f"{text[:_EXAMPLE_CHARACTERS]} ... (--preview 1 shows all of it)"
    return f"The first example, with loss in [[...]]:\n{text if len(text) <= len(cut) else cut}"


def _row(label: str, text: str, width: int) -> list[str]:
    lines = textwrap.wrap(text, width, break_on_hyphens=False) if width else [text]
    return [f"{'' if i else label:<{_LABEL}}{line}" for i, line in enumerate(lines)]


def _labelled(line: str) -> tuple[str, str]:
    """Return the label of a line of `Inputs.describe`, and what is left of it."""
    for begin, label in (("Training data: ", "data"), ("Held-out data: ", "held-out")):
        if line.startswith(begin):
            return label, line.removeprefix(begin)
    return "batch" if line.startswith("global batch") else "", line.strip()


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _run_text(position: Position, folder: Path) -> str:
    if not position.start_step:
        return str(folder)
    return f"{folder}, continues after step {position.start_step} of {position.num_steps}"


def _model_text(prepared: Prepared) -> str:
    shapes = prepared.design.shapes
    count = sum(parameter.numel() for parameter in shapes.parameters())
    num_layers = len(decoder_layers(shapes))
    name = prepared.adapter.base_model
    name = prepared.base.folder.name if name == "default" else name
    return f"{name}: {_count(count)} parameters, {num_layers} decoder layers"


def _trained_text(prepared: Prepared) -> str:
    shapes: Any = prepared.design.shapes
    num_blocks = prepared.design.num_blocks
    total = sum(parameter.numel() for parameter in shapes.parameters())
    count = sum(shapes.get_submodule(name).weight.numel() // n for name, n in num_blocks.items())
    kinds = Counter(name.rpartition(".")[2] for name in num_blocks)
    blocks = ", ".join(f"N={n}" for n in sorted(set(num_blocks.values())))
    return (
        f"{_count(count)} parameters, {count / total:.2%} of the base, {blocks}, in "
        f"{len(num_blocks)} layers: {', '.join(kinds)}"
    )


def _numbers_text(prepared: Prepared) -> str:
    run_config, design = prepared.run_config, prepared.design
    if design.fit is not None:
        recomputed = "recomputed layers by the memory budget"
    else:
        recomputed = design.recomputation.text(len(decoder_layers(design.shapes)))
    compiled = "compiled layers" if run_config.compile == "on" else "not compiled"
    return (
        f"{run_config.precision}, deltas and optimizer in fp32; attention {run_config.attention}; "
        f"delta path {run_config.delta_path}; {compiled}; {recomputed}"
    )


def _placement_text(prepared: Prepared) -> str:
    design, world_size = prepared.design, distributed.world_size()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    threads = "" if torch.cuda.is_available() else f" with {torch.get_num_threads()} threads each"
    text = f"ZeRO-{design.stage} on {world_size} x {device}{threads}: {_STAGES[design.stage]}"
    for name, what in (("offload_param", "base"), ("offload_optimizer", "optimizer state")):
        offload = design.ds_config.get("zero_optimization", {}).get(name) or {}
        if offload.get("device", "none") != "none":
            text += f"; {what} offloaded to {offload['device']}"
    return text


def _schedule_text(prepared: Prepared, position: Position) -> str:
    run_config, num_steps = prepared.run_config, position.num_steps
    parts = [f"checkpoint every {interval(run_config.save_every, num_steps)} steps"]
    if prepared.inputs.heldout is not None:
        parts.insert(0, f"evaluation every {interval(run_config.eval_every, num_steps)} steps")
    parts.append(f"learning rate {run_config.learning_rate:g}, {run_config.schedule}")
    return "; ".join(parts) + "; the time it takes is shown once steps were measured"


def _count(count: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return str(count)
