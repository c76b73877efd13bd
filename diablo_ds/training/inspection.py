"""What is in a folder that this program wrote, as text; reads no tensor data."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diablo_ds.adapter.storage import load_adapter_header
from diablo_ds.config.run_files import load_recorded
from diablo_ds.config.starts import Change, load_starts
from diablo_ds.data.prepare import manifest
from diablo_ds.errors import UserError
from diablo_ds.evaluation.description import describe_evaluation
from diablo_ds.files.layout import (
    Kind,
    RunFolder,
    kind_of,
    list_checkpoints,
)
from diablo_ds.training.checkpoint import read_position, verify_checkpoint
from diablo_ds.training.metrics_file import read_metrics
from diablo_ds.training.run_numbers import RunNumbers


def describe(path: Path) -> str:
    """Describe a run, a checkpoint, an adapter, a prepared dataset or an evaluation.

    Raises:
        UserError: if it is none of them, or a file in it is missing or damaged.
    """
    kind = kind_of(path)
    if kind not in _DESCRIPTIONS:
        raise UserError(
            "path must be a run folder, a checkpoint, an adapter, a prepared dataset or the folder "
            f"of an evaluation; got {path}, {kind.value}"
        )
    return _DESCRIPTIONS[kind](path)


def _describe_run(folder: Path) -> str:
    files = RunFolder(folder)
    run_config = load_recorded(files.run_config)
    lines = [
        f"Run {folder}{', done' if files.is_done() else ''}",
        f"  model        {run_config.model}",
        f"  data         {', '.join(run_config.data)}",
    ]
    if early_stop := files.early_stop():
        lines.append(f"  stopped      {early_stop}")
    points, _ = read_metrics(files.metrics)
    for name, label in (("loss", "loss        "), ("heldout_loss", "held-out    ")):
        values = [(int(p["step"]), p[name]) for p in points if name in p]
        if values:
            (first_step, first), (last_step, last) = values[0], values[-1]
            lines.append(f"  {label} {first:.4f} at step {first_step}, {last:.4f} at {last_step}")
    numbers = RunNumbers.of(points)
    if numbers.best_heldout is not None:
        lines[-1] += f", lowest {numbers.best_heldout:.4f} at {numbers.best_step}"
    lines += _checkpoint_lines(files.checkpoints)
    lines += [_start_line(start) for start in load_starts(files.run_config)]
    if kind_of(files.adapter) is Kind.ADAPTER:
        lines.append(_describe_adapter(files.adapter))
    return "\n".join(lines)


def _start_line(start: Mapping[str, Any]) -> str:
    """Return a start as a line; what its entry lacks is left out."""
    hosts = [host["name"] for host in start.get("hosts", ()) if "name" in host]
    facts = [
        f"after step {start['start_step']}" if start.get("start_step") else "",
        f"world size {start['world_size']}" if "world_size" in start else "",
        f"on {', '.join(hosts)}" if hosts else "",
        f"commit {start['commit'][:12]}" if start.get("commit") else "",
    ]
    facts += [Change(**change).text() for change in start.get("changes", ())]
    return f"  started      {', '.join(filter(None, [start.get('date', ''), *facts]))}"


def _describe_checkpoints(folder: Path) -> str:
    return "\n".join([f"Checkpoints {folder}", *_checkpoint_lines(folder)])


def _checkpoint_lines(folder: Path) -> list[str]:
    lines = []
    for checkpoint in list_checkpoints(folder):
        try:
            verify_checkpoint(checkpoint)
            lines.append(f"  checkpoint   {checkpoint.name}, intact")
        except UserError as error:
            lines.append(f"  checkpoint   {checkpoint.name}, damaged: {error}")
    return lines


def _describe_checkpoint(folder: Path) -> str:
    verify_checkpoint(folder)
    state = read_position(folder)
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    lines = [
        f"Checkpoint {folder}: intact, {num_bytes:,} bytes",
        f"  step         {state['step']}, {state['step'] * state['global_batch']:,} examples seen",
        f"  seed         {state['seed']}",
    ]
    return "\n".join([*lines, _describe_adapter(folder)])


def _describe_adapter(folder: Path) -> str:
    header = load_adapter_header(folder)
    shapes, config = header.shapes, header.config
    num_parameters = sum(n * i * o for (n, i, o), _ in shapes.values())
    kinds = Counter(
        (name.rpartition(".")[2], *shape, dtype) for name, (shape, dtype) in shapes.items()
    )
    base = (
        f"{config.base_model or 'unknown'} (fingerprint {config.base_fingerprint[:12] or 'none'})"
    )
    lines = [
        f"Adapter {folder}",
        f"  base model   {base}",
        f"  deltas       {len(shapes)}, {num_parameters:,} parameters",
        f"  dropout      {config.dropout}",
    ]
    if config.step is not None:
        loss = "" if config.heldout_loss is None else f", held-out loss {config.heldout_loss:.4f}"
        lines.append(f"  step         {config.step}{loss}")
    if config.parent is not None and "folder" in config.parent:
        lines.append(f"  started from {config.parent['folder']}")
    if config.library_versions:
        packages = (f"{name} {version}" for name, version in config.library_versions.items())
        lines.append(f"  made with    {', '.join(packages)}")
    lines += [
        f"  {count:4d} x {name}: num_blocks={num_blocks}, in_block={in_block}, "
        f"out_block={out_block}, {dtype}"
        for (name, num_blocks, in_block, out_block, dtype), count in kinds.items()
    ]
    return "\n".join(lines)


def _describe_dataset(folder: Path) -> str:
    record = manifest.load_manifest(folder)
    lines = [
        f"Dataset {folder}",
        f"  tokenizer    {record['tokenizer']['name']}",
        *(f"  {line}" for line in manifest.describe(record).splitlines()),
        f"Examples with their masks: diablo-ds prepare --inspect {shlex.quote(str(folder))}",
    ]
    return "\n".join(lines)


_DESCRIPTIONS: dict[Kind, Callable[[Path], str]] = {
    Kind.RUN: _describe_run,
    Kind.CHECKPOINTS: _describe_checkpoints,
    Kind.CHECKPOINT: _describe_checkpoint,
    Kind.ADAPTER: _describe_adapter,
    Kind.DATASET: _describe_dataset,
    Kind.EVALUATION: describe_evaluation,
}
