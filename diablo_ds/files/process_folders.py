"""Folders in the temporary folder that are a process's own, and are not left there for good.

Each has a random name and mode 0700, and is locked while a process has it. One that a killed
process has left is removed by the next process that makes one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from diablo_ds.files import owned


@contextlib.contextmanager
def process_folder(prefix: str) -> Iterator[Path]:
    """Make an empty folder in the temporary folder, and remove it with all that is in it.

    Where another process shares it by then, it is left to the next one that makes one.

    Args:
        prefix: of its name; folders of dead processes with it go first.

    Raises:
        OSError: if none can be made.
    """
    _remove_left(prefix)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        made = os.lstat(folder)
        with _locked(folder, fcntl.LOCK_SH) as descriptor:
            # Before it was locked another process may have taken it for one that was left. Where
            # the file system has no locks, none is.
            if not folder.exists():
                continue
            try:
                yield folder
            finally:
                with contextlib.suppress(OSError):
                    if descriptor >= 0:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    owned.remove_own(folder, made=made)
            return


@contextlib.contextmanager
def shared_process_folder(folder: Path, prefix: str) -> Iterator[None]:
    """Keep a process's folder that may end before this one does; any other is left alone."""
    is_one = folder.name.startswith(prefix) and folder.parent == Path(tempfile.gettempdir())
    with _locked(folder, fcntl.LOCK_SH) if is_one else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _locked(folder: Path, operation: int) -> Iterator[int]:
    """Lock a folder of this user's; yields its descriptor, or -1 where it is not locked."""
    descriptor, is_locked = -1, False
    try:
        with contextlib.suppress(OSError):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(folder, flags)
            if os.fstat(descriptor).st_uid == os.geteuid():
                fcntl.flock(descriptor, operation)
                is_locked = os.path.samestat(os.fstat(descriptor), os.lstat(folder))
        yield descriptor if is_locked else -1
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _remove_left(prefix: str) -> None:
    """Remove the folders of this user's that no living process has locked."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB) as descriptor:
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    owned.remove_own(folder)
