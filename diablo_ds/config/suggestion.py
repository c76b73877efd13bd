"""What a name that is not known was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_OF_OTHERS = {
    "base_model": "model",
    "batch_size": "global_batch",
    "dataset": "data",
    "dataset_path": "data",
    "datasets": "data",
    "epochs": "num_epochs",
    "gradient_checkpointing": "recompute",
    "lr": "learning_rate",
    "lr_scheduler": "schedule",
    "lr_scheduler_type": "schedule",
    "max_seq_length": "max_length",
    "model_name_or_path": "model",
    "num_train_epochs": "num_epochs",
    "output_dir": "output",
    "per_device_train_batch_size": "micro_batch",
    "micro_batch_size": "micro_batch",
    "sample_packing": "packing",
    "save_steps": "save_every",
    "eval_steps": "eval_every",
    "tasks": "eval_tasks",
    "sequence_len": "max_length",
    "target_modules": "targets",
    "train_batch_size": "global_batch",
    "train_file": "data",
    "val_set_size": "heldout_share",
}
"""What other trainers call our settings."""


def closest(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that an unknown one may stand for, the likeliest first.

    Args:
        name: the unknown name, with dashes or underscores.
        known: the known ones.
    """
    by_plain = {_plain(item): item for item in known}
    if (meant := _OF_OTHERS.get(_plain(name), "")) in by_plain:
        return [by_plain[meant]]
    close = difflib.get_close_matches(_plain(name), by_plain, n=2, cutoff=0.6)
    return [by_plain[item] for item in close]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" with the known names closest to an unknown one, or nothing."""
    close = closest(name, known)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()
