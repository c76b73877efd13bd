"""Files that a user names, whoever made them: opened without waiting for somebody else."""

from __future__ import annotations

import errno
import io
import os
import select
import stat
from pathlib import Path

from diablo_ds.errors import UserError
from diablo_ds.files.owners import describe_access, is_trusted


def open_named(path: Path) -> io.BufferedReader:
    """Open a file to read its bytes, as ``path.open("rb")`` does, but wait for nobody else.

    A pipe of this user's is waited for, such as a shell makes for ``<(command)``. One that another
    user has put into a file's place, in a folder of a model for example, would never answer.

    Raises:
        UserError: if it is no regular file, and another user's.
        OSError: if it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not (stat.S_ISREG(found.st_mode) or is_trusted(found)):
            raise _not_regular(path, found)
        if stat.S_ISFIFO(found.st_mode):
            _wait_for_writer(descriptor)
        os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _wait_for_writer(descriptor: int) -> None:
    """Wait until a pipe has data, or its last writer has closed it: before, it seems empty."""
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    waiting.poll()


def check_no_pipes(folder: Path) -> None:
    """Refuse a folder in which another user's pipe or device stands for a file.

    For folders whose files libraries open, and would wait for.

    Raises:
        UserError: if there is one, in the folder itself or one in it.
    """
    for path in (*folder.iterdir(), *folder.glob("*/*")):
        try:
            found = path.stat()
        except OSError:  # a link to nothing, which whoever needs the file will name
            continue
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode) or is_trusted(found)):
            raise _not_regular(path, found)


def _not_regular(path: Path, found: os.stat_result) -> UserError:
    return UserError(
        f"a file must be a regular file, or a pipe of your own; got {path}, "
        f"{describe_access(found)}"
    )
