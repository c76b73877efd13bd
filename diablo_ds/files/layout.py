"""The folders that this program writes: their files' names, and how one kind is told from another.

A folder's kind is told by what is in it, never by its name. Only the standard library is used here,
so that every module and every command can ask.
"""

from __future__ import annotations

import enum
import json
from pathlib import Path

ADAPTER_CONFIG_FILE, ADAPTER_TENSOR_FILE = "adapter.json", "adapter.safetensors"
CHECKSUMS_FILE = "checksums.json"
STATE_FILE, OPTIMIZER_FILE = "state.json", "optimizer.safetensors"
MANIFEST_FILE = "manifest.json"
"""The record of a prepared dataset; early versions gave a checkpoint's checksums this name too."""
RUN_CONFIG_FILE = "run.json"


class Kind(enum.Enum):
    """What a path leads to; the value says it in a message."""

    RUN = "a run folder"
    CHECKPOINT = "a checkpoint"
    CHECKPOINTS = "a folder of checkpoints"
    ADAPTER = "an adapter"
    DATASET = "a prepared dataset"
    LOGS = "a folder of the ranks' logs"
    BASE_MODEL = "a base model"
    PLAN = "a plan's folder"
    EMPTY = "an empty folder"
    OTHER = "a folder with other files"
    FILE = "a file"
    NOTHING = "nothing, there is no such file or folder"


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
    if names & {CHECKSUMS_FILE, OPTIMIZER_FILE} or _holds_checksums(path / MANIFEST_FILE):
        return Kind.CHECKPOINT
    if names & {ADAPTER_CONFIG_FILE, ADAPTER_TENSOR_FILE}:
        return Kind.ADAPTER
    if names & {MANIFEST_FILE, "dataset_dict.json", "dataset_info.json"}:
        return Kind.DATASET
    if "config.json" in names:
        return Kind.BASE_MODEL
    if "plan.json" in names:
        return Kind.PLAN
    if any(path.glob("step-*/*.json")):
        return Kind.CHECKPOINTS
    if any(path.glob("rank-*.json")) or any(path.glob("*/rank-*.json")):
        return Kind.LOGS
    return Kind.OTHER if names else Kind.EMPTY


def checksums_file(checkpoint: Path) -> Path:
    """Return the file with a checkpoint's checksums, under its name or that of early versions."""
    file, early = checkpoint / CHECKSUMS_FILE, checkpoint / MANIFEST_FILE
    return early if early.is_file() and not file.is_file() else file


def _holds_checksums(manifest: Path) -> bool:
    """Return whether a file of this name is the list of a checkpoint's files."""
    try:
        value = json.loads(manifest.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "files" in value and "parts" not in value
