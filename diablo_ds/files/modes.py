"""Modes of what this program makes, stated once: for its user alone, or also for the group.

The choice holds for a process and all that it starts: by an environment variable, and by the umask,
which libraries obey that make files of their own. Only the standard library is used here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "DIABLO_SHARED_WITH"
"""Environment variable with the words of the choice, for processes that this one starts."""
ALLOW_GROUP_WRITE, GROUP_READABLE = "allow-group-write", "group-readable"
_NO_MODES = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""Of file systems that show one mode for all files."""
PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
READABLE_FOLDER, READABLE_FILE = 0o750, 0o640
TEAM_FOLDER, TEAM_FILE = 0o770, 0o660


def share(*, allow_group_write: bool = False, group_readable: bool = False) -> None:
    """Choose whom files are made for, in this process and those that it starts.

    Args:
        allow_group_write: the group reads and writes them, and what its members wrote is believed.
        group_readable: the group reads them.
    """
    words = [ALLOW_GROUP_WRITE] * allow_group_write + [GROUP_READABLE] * group_readable
    os.environ.pop(VARIABLE, None)
    if words:
        os.environ[VARIABLE] = ",".join(words)
    set_umask()


def umask() -> int:
    """Return the umask with which libraries make files with these modes too."""
    return 0o777 & ~folder_mode()


def set_umask() -> None:
    """Have libraries make files with these modes too."""
    given = os.umask(umask())
    if not _given:
        _given.append(given)


_given: list[int] = []
"""The umask with which this process was started, once it was changed."""


@contextlib.contextmanager
def users_umask() -> Iterator[None]:
    """Make files as the user has chosen outside, as in a cache that other programs share."""
    ours = os.umask(_given[0]) if _given else None
    try:
        yield
    finally:
        if ours is not None:
            os.umask(ours)


def allows_group_write() -> bool:
    """Return whether members of the group are trusted with what this process uses."""
    return ALLOW_GROUP_WRITE in os.environ.get(VARIABLE, "").split(",")


def folder_mode() -> int:
    """Return the mode of a new folder."""
    return TEAM_FOLDER if allows_group_write() else READABLE_FOLDER if _reads() else PRIVATE_FOLDER


def file_mode() -> int:
    """Return the mode of a new file."""
    return TEAM_FILE if allows_group_write() else READABLE_FILE if _reads() else PRIVATE_FILE


def set_mode(path: Path | int) -> None:
    """Give what this process has made its mode, whatever the umask is; a link is left alone.

    Args:
        path: a file or folder, or a descriptor of one.
    """
    found = os.fstat(path) if isinstance(path, int) else os.lstat(path)
    if stat.S_ISDIR(found.st_mode):
        mode = folder_mode() | found.st_mode & stat.S_ISGID  # a project's folders pass it on
    elif stat.S_ISREG(found.st_mode):
        mode = file_mode()
    else:
        return
    if stat.S_IMODE(found.st_mode) != mode:
        try:
            os.chmod(path, mode)
        except OSError as error:
            if error.errno not in _NO_MODES:
                raise


def _reads() -> bool:
    return GROUP_READABLE in os.environ.get(VARIABLE, "").split(",")
