"""TensorBoard's writer, whose errors are raised where it is called and printed nowhere else."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from diablo_ds.files import owned


def open_writer(folder: Path, *, purge_step: int | None = None) -> Any:
    """Return a `SummaryWriter`.

    Args:
        folder: of its files.
        purge_step: step from which on points that are there already are not shown.
    """
    from torch.utils.tensorboard import SummaryWriter

    threading.excepthook = _leave_to_the_writer
    owned.make_folder(folder, "TensorBoard folder")
    return SummaryWriter(str(folder), purge_step=purge_step)


def _leave_to_the_writer(raised: threading.ExceptHookArgs) -> None:
    """Print no traceback of TensorBoard's thread on a full disk: its writer raises that error."""
    is_writers = type(raised.thread).__module__.startswith("tensorboard.")
    if not (is_writers and isinstance(raised.exc_value, OSError)):
        threading.__excepthook__(raised)
