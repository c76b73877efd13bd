"""Which checkpoints of a run are kept; removing the others, and what killed processes left."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path

from diablo_ds.files import owned
from diablo_ds.files.atomic import read_json
from diablo_ds.files.layout import checksums_file, list_checkpoints, step_of


def remove_old(root: Path, newest: Path, keep_last: int, best_step: int | None) -> None:
    """Remove all checkpoints but the last ones and the best one.

    Args:
        root: folder of the run's checkpoints.
        newest: the one that was just written.
        keep_last: how many to keep, counting ``newest``.
        best_step: step of the best one, kept beside them where it is none of them; None where it is
            not kept for being the best.
    """
    for old in _by_worth(root, newest)[keep_last:]:
        if step_of(old) != best_step:
            _remove(old)


def _by_worth(root: Path, newest: Path) -> list[Path]:
    """Return the checkpoints, the one that is best to keep first.

    ``newest``, just written, is the first; others are worth less if they are damaged. Those of
    later steps are: the run was resumed before them. For the rest, sizes have to do, since
    checksums would take as long as writing.
    """
    step = step_of(newest)

    def worth(folder: Path) -> tuple[bool, bool, int]:
        is_good = step_of(folder) < step and _has_right_sizes(folder)
        return folder == newest, is_good, step_of(folder)

    return sorted(list_checkpoints(root), key=worth, reverse=True)


def _has_right_sizes(folder: Path) -> bool:
    """Return whether each file of a checkpoint is as long as its list of checksums says."""
    try:
        files = read_json(checksums_file(folder))["files"]
        return all(
            (folder / name).stat().st_size == entry["bytes"] for name, entry in files.items()
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def _remove(folder: Path) -> None:
    """Remove a checkpoint, so that one which is half removed is not taken for a damaged one."""
    hidden = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    with contextlib.suppress(FileNotFoundError):  # someone else removed it
        folder.rename(hidden)
    with contextlib.suppress(OSError):
        owned.remove_own(hidden)


def remove_leftovers(root: Path) -> None:
    """Remove what a killed process left: half-written and half-removed checkpoints."""
    for path in root.glob(".step-*"):
        name, suffix = path.name[1:].split(".")[0], path.suffix
        if suffix == ".old" and not (root / name).exists():  # replaced by no new one yet
            path.rename(root / name)
        elif suffix in (".old", ".tmp"):
            with contextlib.suppress(OSError):
                owned.remove_own(path)
