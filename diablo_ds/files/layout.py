"""The folders that this program writes: the names in them, and how one kind is told from another.

A folder's kind is told by what is in it, never by its name. Only the standard library is used here,
so that every module and every command can ask.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json, write_json

ADAPTER_CONFIG_FILE, ADAPTER_TENSOR_FILE = "adapter_config.json", "adapter_model.safetensors"
EARLY_CONFIG_FILE, EARLY_TENSOR_FILE = "adapter.json", "adapter.safetensors"
"""An adapter's files as early versions wrote them; they are still read."""
CARD_FILE = "README.md"
"""An adapter's model card."""
CHECKSUMS_FILE = "checksums.json"
STATE_FILE, OPTIMIZER_FILE = "state.json", "optimizer.safetensors"
MANIFEST_FILE = "manifest.json"
"""The record of a prepared dataset; early versions gave a checkpoint's checksums this name too."""
RUN_CONFIG_FILE = "run.json"
SWEEP_FILE = "sweep.json"
"""The record of a sweep; it makes a folder a sweep's, with a run folder for each run."""
GIVEN_CONFIG_FILES = ("given_config.yaml", "given_config.json")
"""A run's copy of the file that a person gave by `--config`, by its form."""
METRICS_FILE, PROGRESS_FILE, LOSS_PLOT = "metrics.jsonl", "progress.json", "loss.png"
ADAPTER_FOLDER, CHECKPOINTS_FOLDER = "adapter", "checkpoints"
LOGS_FOLDER, TENSORBOARD_FOLDER = "logs", "tensorboard"
PROFILE_FOLDER, TRACKERS_FOLDER = "profile", "trackers"
MERGE_REPORT_FILE = "merge_report.json"
EVALUATION_FILE, PREDICTIONS_FILE = "evaluation.json", "predictions.jsonl"
"""What an evaluation asks whom, which makes a folder an evaluation's; and all answers so far."""
RESULTS_FILE, REPORT_FILE = "results.json", "report.md"
"""An evaluation's scores, for programs and for people."""
OWNER_FOLDER = ".owner"
"""Tells which process writes to the folder that it lies in."""
RANK_RECORDS = "rank-*.json"
"""Pattern of the files in a log folder that tell how ranks ended."""
_STEP_NAME = re.compile(r"step-([0-9]{1,18})")


@dataclass(frozen=True)
class RunFolder:
    """A run folder: where each thing in it is, and whether the run is done."""

    path: Path

    @property
    def run_config(self) -> Path:
        """The run config; it makes a folder a run folder."""
        return self.path / RUN_CONFIG_FILE

    @property
    def metrics(self) -> Path:
        """One JSON object per step or evaluation."""
        return self.path / METRICS_FILE

    @property
    def progress(self) -> Path:
        """How many steps there are, where the last start began, and whether the run is done."""
        return self.path / PROGRESS_FILE

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.path / TENSORBOARD_FOLDER

    def tracker(self, name: str) -> Path:
        """Return the folder of a tracker of another package."""
        return self.path / TRACKERS_FOLDER / name

    @property
    def profile(self) -> Path:
        """The folder of traces of steps."""
        return self.path / PROFILE_FOLDER

    @property
    def loss_plot(self) -> Path:
        """The loss curve, written at the end."""
        return self.path / LOSS_PLOT

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / CHECKPOINTS_FOLDER

    @property
    def logs(self) -> Path:
        """The folder of the ranks' logs and records, a folder per start."""
        return self.path / LOGS_FOLDER

    @property
    def adapter(self) -> Path:
        """The trained adapter, written at the end."""
        return self.path / ADAPTER_FOLDER

    def write_progress(
        self,
        num_steps: int,
        start_step: int,
        *,
        done: bool,
        early_stop: str = "",
        evals_without_better: int | None = None,
    ) -> None:
        """Write down how far the run goes; called as a start begins to train, and at the end.

        Args:
            num_steps: of the run.
            start_step: where this start began.
            done: whether the run is done.
            early_stop: why it is, where it stopped before its last step.
            evals_without_better: evaluations since the best one, where the run is done.
        """
        values = {"num_steps": num_steps, "start_step": start_step, "done": done}
        optional = {"early_stop": early_stop, "evals_without_better": evals_without_better}
        given = {name: value for name, value in optional.items() if value not in ("", None)}
        write_json(self.progress, values | given)

    def num_steps(self) -> int | None:
        """Return the number of steps of the run; None where that is not known."""
        number = self._progress().get("num_steps")
        return number if type(number) is int and number > 0 else None

    def evals_without_better(self) -> int | None:
        """Return the evaluations since the best one of a run that is done; None if not known."""
        number = self._progress().get("evals_without_better")
        return number if type(number) is int and number >= 0 else None

    def early_stop(self) -> str:
        """Return why a run that is done stopped before its last step; empty where it did not."""
        reason = self._progress().get("early_stop")
        return reason if isinstance(reason, str) and self.is_done() else ""

    def is_done(self) -> bool:
        """Return whether the run came to its end, perhaps early, and the adapter was written.

        Early versions did not write it down: then the adapter tells.
        """
        names = (ADAPTER_CONFIG_FILE, EARLY_CONFIG_FILE)
        has_adapter = any((self.adapter / name).is_file() for name in names)
        return has_adapter and self._progress().get("done", True) is True

    def _progress(self) -> dict[str, Any]:
        if not self.progress.is_file():
            return {}
        try:
            values = read_json(self.progress)
        except ValueError:
            return {}
        return values if isinstance(values, dict) else {}


def checkpoint_folder(root: Path, step: int) -> Path:
    """Return the folder of the checkpoint after ``step`` steps, in the folder of all."""
    return root / f"step-{step:06d}"


def list_checkpoints(root: Path) -> list[Path]:
    """Return the checkpoints in a folder, the latest first, without half-written ones."""
    found = [path for path in root.glob("step-*") if step_of(path) >= 0]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the step in the name of a checkpoint's folder; -1 for another name."""
    match = _STEP_NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


class Kind(enum.Enum):
    """What a path leads to; the value says it in a message."""

    RUN = "a run folder"
    SWEEP = "the folder of a sweep"
    CHECKPOINT = "a checkpoint"
    CHECKPOINTS = "a folder of checkpoints"
    ADAPTER = "an adapter"
    DATASET = "a prepared dataset"
    EVALUATION = "the folder of an evaluation"
    LOGS = "a folder of the ranks' logs"
    BASE_MODEL = "a base model"
    PLAN = "a plan's folder"
    EMPTY = "an empty folder"
    OTHER = "a folder with other files"
    FILE = "a file"
    NOTHING = "which does not exist"


def kind_of(path: Path) -> Kind:
    """Return what a path leads to.

    A damaged folder, of which files are missing, is still taken for what the others make of it.
    """
    if not path.exists():
        return Kind.NOTHING
    if not path.is_dir():
        return Kind.FILE
    names = {entry.name for entry in path.iterdir()}
    if RUN_CONFIG_FILE in names:
        return Kind.RUN
    if SWEEP_FILE in names:
        return Kind.SWEEP
    if names & {CHECKSUMS_FILE, OPTIMIZER_FILE} or _holds_checksums(path / MANIFEST_FILE):
        return Kind.CHECKPOINT
    if names & {ADAPTER_CONFIG_FILE, ADAPTER_TENSOR_FILE, EARLY_CONFIG_FILE, EARLY_TENSOR_FILE}:
        return Kind.ADAPTER
    if names & {MANIFEST_FILE, "dataset_dict.json", "dataset_info.json"}:
        return Kind.DATASET
    if EVALUATION_FILE in names:
        return Kind.EVALUATION
    if "config.json" in names:
        return Kind.BASE_MODEL
    if "plan.json" in names:
        return Kind.PLAN
    if list_checkpoints(path):
        return Kind.CHECKPOINTS
    if any(path.glob(RANK_RECORDS)) or any(path.glob(f"*/{RANK_RECORDS}")):
        return Kind.LOGS
    return Kind.OTHER if names else Kind.EMPTY


def checksums_file(checkpoint: Path) -> Path:
    """Return the file with a checkpoint's checksums, under its name or that of early versions."""
    file, early = checkpoint / CHECKSUMS_FILE, checkpoint / MANIFEST_FILE
    return early if early.is_file() and not file.is_file() else file


def _holds_checksums(manifest: Path) -> bool:
    """Return whether a file of this name is the list of a checkpoint's files."""
    try:
        value = read_json(manifest)
    except UserError:
        return False
    return isinstance(value, dict) and "files" in value and "parts" not in value
