"""What is in an adapter, a checkpoint or a run folder, as text; reads no tensor data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from diablo_ds.adapter.storage import CONFIG_FILE, TENSOR_FILE, check_shapes, load_adapter_config
from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.files.whole_tensors import tensor_shapes
from diablo_ds.training.checkpoint import (
    MANIFEST_FILE,
    list_checkpoints,
    read_position,
    verify_checkpoint,
)
from diablo_ds.training.metrics import read_metrics
from diablo_ds.training.run_folder import RUN_CONFIG_FILE, checkpoints_folder


def describe(path: Path) -> str:
    """Describe a folder that this program wrote.

    Raises:
        UserError: if it is none, or a file in it is missing or damaged.
    """
    if (path / RUN_CONFIG_FILE).is_file():
        return _describe_run(path)
    if (path / MANIFEST_FILE).is_file():
        return _describe_checkpoint(path)
    if (path / CONFIG_FILE).is_file():
        return _describe_adapter(path)
    raise UserError(
        "path must be the folder of an adapter, a checkpoint or a run; got "
        f"{path}{'' if path.exists() else ', which does not exist'}"
    )


def _describe_adapter(folder: Path) -> str:
    config = load_adapter_config(folder)
    shapes = tensor_shapes(folder / TENSOR_FILE)
    check_shapes(shapes, config, folder)
    num_parameters = sum(n * i * o for (n, i, o), _ in shapes.values())
    kinds = Counter(
        (n.removesuffix(".delta").rpartition(".")[2], *s, dtype) for n, (s, dtype) in shapes.items()
    )
    base = f"{config.base_model} (fingerprint {config.base_fingerprint[:12] or 'none'})"
    lines = [
        f"Adapter {folder}",
        f"  base model   {base}",
        f"  deltas       {len(shapes)}, {num_parameters:,} parameters",
        f"  dropout      {config.dropout}",
    ]
    lines += [
        f"  {count:4d} x {name}: num_blocks={num_blocks}, in_block={in_block}, "
        f"out_block={out_block}, {dtype}"
        for (name, num_blocks, in_block, out_block, dtype), count in kinds.items()
    ]
    return "\n".join(lines)


def _describe_checkpoint(folder: Path) -> str:
    verify_checkpoint(folder)
    state = read_position(folder)
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    lines = [
        f"Checkpoint {folder}: whole, {num_bytes:,} bytes",
        f"  step         {state['step']}, {state['step'] * state['global_batch']:,} examples seen",
        f"  seed         {state['seed']}",
    ]
    return "\n".join([*lines, _describe_adapter(folder)])


def _describe_run(folder: Path) -> str:
    config = RunConfig.load(folder / RUN_CONFIG_FILE)
    lines = [f"Run {folder}", f"  model        {config.model}", f"  data         {config.data}"]
    points, _ = read_metrics(folder / "metrics.jsonl")
    for name, label in (("loss", "loss        "), ("heldout_loss", "held-out    ")):
        values = [(int(p["step"]), p[name]) for p in points if name in p]
        if values:
            (first_step, first), (last_step, last) = values[0], values[-1]
            lines.append(f"  {label} {first:.4f} at step {first_step}, {last:.4f} at {last_step}")
    for checkpoint in list_checkpoints(checkpoints_folder(folder)):
        try:
            verify_checkpoint(checkpoint)
            lines.append(f"  checkpoint   {checkpoint.name}, whole")
        except ValueError as error:
            lines.append(f"  checkpoint   {checkpoint.name}, damaged: {error}")
    if (folder / "adapter" / CONFIG_FILE).is_file():
        lines.append(_describe_adapter(folder / "adapter"))
    return "\n".join(lines)
