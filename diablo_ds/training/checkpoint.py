"""Checkpoints: adapter, optimizer and position; written completely or not at all, verified on load.

A checkpoint is a folder `step-000120` with an adapter (two files), `optimizer.safetensors` (the
AdamW moments, fp32, by delta name), `state.json` (step and loss scaler) and `checksums.json`
(SHA-256 of each file). The frozen base is never in it. Tensors are unsharded, so any world size and
ZeRO stage can continue from it. Data position, learning rate and random state are functions of seed
and step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from diablo_ds.adapter.storage import (
    AdapterConfig,
    load_adapter,
    write_adapter_files,
)
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import new_folder, read_json, sha256_file, write_json
from diablo_ds.files.layout import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_TENSOR_FILE,
    CHECKSUMS_FILE,
    EARLY_CONFIG_FILE,
    EARLY_TENSOR_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    checkpoint_folder,
    checksums_file,
    list_checkpoints,
    step_of,
)
from diablo_ds.files.whole_tensors import load_tensors, save_tensors
from diablo_ds.training.content_checks import check_position, check_tensors
from diablo_ds.training.evaluations import Evaluations
from diablo_ds.training.pruning import remove_old
from diablo_ds.zero.optimizer_state import MOMENTS

CHECKPOINT_FORMAT = 1
_FILES = {STATE_FILE, OPTIMIZER_FILE, ADAPTER_TENSOR_FILE, ADAPTER_CONFIG_FILE}
_EARLY_FILES = {STATE_FILE, OPTIMIZER_FILE, EARLY_TENSOR_FILE, EARLY_CONFIG_FILE}
"""Those of a checkpoint of an early version."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to continue exactly, apart from its config and the base model."""

    step: int
    """Optimizer steps taken."""
    global_batch: int
    """Examples per step; gives the data position."""
    seed: int
    """Seed of data order and dropout."""
    num_optimizer_steps: int
    """AdamW's own count; smaller than ``step`` where fp16 skipped steps."""
    adapter: AdapterConfig
    """What the deltas belong to."""
    state: Mapping[str, Mapping[str, Tensor]]
    """By delta name: "master", "exp_avg", "exp_avg_sq", each fp32."""
    loss_scaler: Mapping[str, float] = field(default_factory=dict)
    """State of the dynamic loss scaler; empty unless in fp16."""

    data: Mapping[str, Any] | None = None
    """Identity of the data trained on; None where an older version wrote the checkpoint."""
    evaluations: Evaluations = field(default_factory=Evaluations)
    """What the run remembers of its held-out evaluations."""

    @property
    def lag(self) -> int:
        """Sequences by which the data are behind full global batches."""
        return 0 if self.data is None else self.data.get("lag") or 0

    @property
    def masters(self) -> dict[str, Tensor]:
        """The deltas by name, fp32."""
        return {name: state["master"] for name, state in self.state.items()}


def save_checkpoint(
    root: Path,
    checkpoint: Checkpoint,
    keep_last: int,
    best_step: int | None = None,
    advance: Callable[[int], None] = lambda num_bytes: None,
) -> Path:
    """Write a checkpoint and then remove all but the last ``keep_last`` and the best one.

    Args:
        root: folder of the run's checkpoints.
        checkpoint: what to save.
        keep_last: how many to keep, counting this one.
        best_step: step of the best one, kept beside them where it is none of them; None where it is
            not kept for being the best.
        advance: called with bytes that were written, and again when they were read for a checksum.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: if it cannot be written, e.g. on a full disk; older checkpoints are untouched.
    """
    folder = checkpoint_folder(root, checkpoint.step)
    with new_folder(folder) as temporary:
        write_adapter_files(temporary, checkpoint.masters, checkpoint.adapter)
        advance((temporary / ADAPTER_TENSOR_FILE).stat().st_size)
        moments = {
            f"{name}.{key}": state[key]
            for name, state in checkpoint.state.items()
            for key in MOMENTS
        }
        save_tensors(temporary / OPTIMIZER_FILE, moments)
        advance((temporary / OPTIMIZER_FILE).stat().st_size)
        write_json(
            temporary / STATE_FILE,
            {
                "format": CHECKPOINT_FORMAT,
                "step": checkpoint.step,
                "examples_seen": checkpoint.step * checkpoint.global_batch - checkpoint.lag,
                "global_batch": checkpoint.global_batch,
                "seed": checkpoint.seed,
                "num_optimizer_steps": checkpoint.num_optimizer_steps,
                "loss_scaler": dict(checkpoint.loss_scaler),
                "data": None if checkpoint.data is None else dict(checkpoint.data),
                "evaluations": checkpoint.evaluations.as_json(),
            },
        )
        files = {}
        for path in sorted(temporary.iterdir()):
            size = path.stat().st_size
            files[path.name] = {"bytes": size, "sha256": sha256_file(path)}
            advance(size)
        write_json(temporary / CHECKSUMS_FILE, {"format": CHECKPOINT_FORMAT, "files": files})
    remove_old(root, folder, keep_last, best_step)
    return folder


def verify_checkpoint(folder: Path) -> None:
    """Compare every file with its checksum.

    Raises:
        UserError: if a file is missing, truncated, changed, or has no checksum; names it.
    """
    file = checksums_file(folder)
    try:
        entries = read_json(file)["files"].items()
        files = {str(name): str(entry["sha256"]) for name, entry in entries}
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"checksums must list files with a sha256; got {file}") from None
    if files.keys() not in (_FILES, _EARLY_FILES):
        raise UserError(
            f"checksums must be those of exactly {', '.join(sorted(_FILES))}; got "
            f"{', '.join(sorted(files)[:9])} in {file}"
        )
    for name, checksum in files.items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != checksum:
            raise UserError(
                f"checkpoint files must match their checksums; got {path} "
                f"{'changed' if path.is_file() else 'missing'}"
            )


def find_checkpoint(
    root: Path, accept: Callable[[Path], object] = lambda folder: load_checkpoint(folder)
) -> tuple[Path | None, list[str]]:
    """Return the latest intact checkpoint, and a message for each damaged one that was skipped.

    Args:
        root: folder of the run's checkpoints.
        accept: raises UserError where the content of a checkpoint does not fit.

    Raises:
        UserError: if there are checkpoints and none is intact: starting over would lose a run.
    """
    problems = []
    for folder in list_checkpoints(root):
        try:
            verify_checkpoint(folder)
            accept(folder)
        except UserError as error:
            problems.append(str(error))
        else:
            return folder, problems
    if problems:
        raise UserError(
            "at least one checkpoint must be intact; got "
            + "; ".join(problems)
            + f"; remove {root} to start over"
        )
    return None, []


def load_checkpoint(
    folder: Path, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Checkpoint:
    """Load a checkpoint that `verify_checkpoint` accepted, onto the CPU.

    Args:
        folder: the checkpoint.
        shapes: of the run's deltas by name; by default those that the adapter in it has.

    Raises:
        UserError: if the files disagree, have another format, or hold something that cannot be
            trained on, such as a tensor of another shape or dtype.
    """
    position = read_position(folder)
    masters, adapter = load_adapter(folder)
    wanted = {name: tuple(master.shape) for name, master in masters.items()}
    check_tensors(masters, wanted if shapes is None else shapes, folder / ADAPTER_TENSOR_FILE)
    moments = load_tensors(folder / OPTIMIZER_FILE)
    moment_shapes = {f"{name}.{key}": wanted[name] for name in wanted for key in MOMENTS}
    check_tensors(moments, moment_shapes, folder / OPTIMIZER_FILE)
    state = {
        name: {"master": master, **{key: moments[f"{name}.{key}"] for key in MOMENTS}}
        for name, master in masters.items()
    }
    negative = next((n for n, tensors in state.items() if (tensors[MOMENTS[1]] < 0).any()), None)
    if negative is not None:
        raise UserError(
            f"second moments must not be negative; got {negative} in {folder / OPTIMIZER_FILE}"
        )
    return Checkpoint(
        step=position["step"],
        global_batch=position["global_batch"],
        seed=position["seed"],
        num_optimizer_steps=position["num_optimizer_steps"],
        adapter=adapter,
        state=state,
        loss_scaler=position["loss_scaler"],
        data=position.get("data"),
        evaluations=Evaluations.from_json(
            position.get("evaluations"), position["step"], folder / STATE_FILE
        ),
    )


def read_position(folder: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's `state.json`.

    Raises:
        UserError: if it is of another format or step, or a value is missing or wrong.
    """
    file = folder / STATE_FILE
    position = check_position(read_json(file), file)
    if position.get("format") != CHECKPOINT_FORMAT:
        raise UserError(f"checkpoint must have format {CHECKPOINT_FORMAT}; got {folder}")
    if step_of(folder) not in (-1, position["step"]):
        raise UserError(
            f"checkpoint must hold the step of its name; got step={position['step']} in {folder}"
        )
    return position
