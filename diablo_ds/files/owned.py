"""Folders and files have an owner: what others could have placed is refused, before it is used.

On a shared machine a folder may have been made by somebody else, and a file in it may be a link to
one of the user's own, a pipe, or a message that another user left. `diablo_ds.files.modes` says
with which modes things are made, and whether members of a group are trusted. Only the standard
library is used here: a guard lives beside every rank and has to stay small.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from diablo_ds.errors import UserError
from diablo_ds.files import modes
from diablo_ds.files.owners import (
    describe_access,
    is_own,
    is_shown_as_ours,
    is_trusted,
    others_write,
)

REPAIR = "choose another, or give --allow-group-write if its group shares it on purpose"
_MAX_READ_BYTES = 1 << 20
_FLAGS = {
    "r": os.O_RDONLY,
    "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "w": os.O_WRONLY | os.O_CREAT,
    "x": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
}


# --- folders -------------------------------------------------------------------------------------


def check_folder(folder: Path, what: str, *, repair: str = REPAIR) -> None:
    """Refuse a folder whose content other users can change.

    It has to belong to this user or to root, and nobody else may write to it. A group counts as
    others if it may have other members. With `--allow-group-write` the members of one of this
    user's groups may own it and write to it.

    Args:
        folder: an existing folder.
        what: its name in the error, such as "log folder".
        repair: what to do if it cannot be made one's own, for the error.

    Raises:
        UserError: if it is no folder, or others can change it; names owner, group and mode.
    """
    found = os.stat(folder)
    if not stat.S_ISDIR(found.st_mode):
        raise UserError(f"{what} must be a folder; got {folder}, {describe_access(found)}")
    # A link that somebody else made may lead anywhere tomorrow.
    link = os.lstat(folder)
    if stat.S_ISLNK(link.st_mode) and not is_trusted(link):
        found = link
    is_ours = is_trusted(found) or (found is not link and is_shown_as_ours(folder, found))
    if is_ours and not others_write(folder, found):
        return
    raise UserError(
        f"{what} must belong to you and be writable by nobody else; got {folder}, "
        f"{describe_access(found)}; `chmod -R go-w` it if it is yours, {repair}"
    )


def check_parent(folder: Path, what: str) -> None:
    """Refuse a folder in which others could replace what this user makes.

    Unlike in `check_folder` others may write to it if the sticky bit keeps each entry its owner's.

    Raises:
        UserError: if they could.
    """
    found = os.stat(folder)
    if not (found.st_mode & stat.S_ISVTX and found.st_uid in (0, os.geteuid())):
        check_folder(folder, what)


def make_folder(folder: Path, what: str, *, repair: str = REPAIR) -> None:
    """Make a folder and its missing parents, or check the one that is there.

    Raises:
        OSError: if it cannot be made.
        UserError: if others can change the one that is there.
    """
    make_parents(folder)
    if not new_folder(folder):
        check_folder(folder, what, repair=repair)


def make_parents(path: Path) -> None:
    """Make the missing folders above a path, with the mode that all have."""
    for parent in reversed(path.parents):
        if not parent.exists():
            new_folder(parent)


def new_folder(folder: Path) -> bool:
    """Make a folder with the mode that all have; return False where something has its name."""
    try:
        folder.mkdir(modes.PRIVATE_FOLDER)
    except FileExistsError:
        return False
    modes.set_mode(folder)
    return True


def make_writable_folder(folder: Path, what: str, remedy: str, *, repair: str = REPAIR) -> None:
    """Make a folder as `make_folder` does, and say what helps where it cannot be written.

    Args:
        folder: the folder.
        what: its name in the error.
        remedy: what another folder can be named with.
        repair: what helps where others can change it.

    Raises:
        UserError: if it cannot be made or written, or others can change the one that is there.
    """
    reason = "no permission to write"
    try:
        make_folder(folder, what, repair=repair)
        if os.access(folder, os.W_OK | os.X_OK):
            return
    except OSError as error:
        reason = str(error)
    raise UserError(f"{what} must be writable; got {folder}: {reason}; name another with {remedy}")


# --- files ---------------------------------------------------------------------------------------


def open_own_file(path: Path, flags: int) -> int:
    """Open a regular file of this user, or make one with the mode that all have.

    Neither a link nor a pipe is followed or waited for, and a file with a second name elsewhere is
    not written to.

    Args:
        path: the file.
        flags: of `os.open`, such as ``os.O_RDONLY``.

    Returns:
        The file descriptor.

    Raises:
        OSError: if there is no such file, it cannot be opened, or it is somebody else's.
    """
    safe = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    is_new = False
    if flags & os.O_CREAT:
        try:
            descriptor = os.open(path, flags | os.O_EXCL | safe, mode=modes.PRIVATE_FILE)
            is_new = True
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
    if not is_new:
        descriptor = os.open(path, flags & ~os.O_CREAT | safe)
    try:
        if is_new:
            modes.set_mode(descriptor)
        found = os.fstat(descriptor)
        is_written = flags & (os.O_WRONLY | os.O_RDWR)
        if not stat.S_ISREG(found.st_mode) or (is_written and found.st_nlink != 1):
            raise PermissionError(f"{path} must be a regular file with one name")
        if not is_new and not is_own(path, found):
            raise PermissionError(f"{path} must be yours; got {describe_access(found)}")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_owned(path: Path, mode: str = "rb", **options: Any) -> Any:
    """Open a file of this user's as `open` does: r, a, w or x, with b for bytes.

    Raises as `open_own_file` does.
    """
    letter = mode.rstrip("bt")
    descriptor = open_own_file(path, _FLAGS[letter])
    if letter == "w":  # not before it is known whose it is
        os.ftruncate(descriptor, 0)
    return os.fdopen(descriptor, mode.replace("x", "w"), **options)


def append_to_own_file(path: Path) -> IO[bytes]:
    """Open a file of this user's to append to it, or make it. Raises as `open_own_file` does."""
    file: IO[bytes] = open_owned(path, "ab")
    return file


def read_own_file(path: Path) -> bytes:
    """Return the content of a small file of this user's. Raises as `open_own_file` does."""
    with open_owned(path) as file:
        data: bytes = file.read(_MAX_READ_BYTES)
        return data


def is_own_file(path: Path) -> bool:
    """Return whether there is such a file and it is this user's: no link, pipe or folder."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and is_own(path, found)


def has_trusted_owner(path: Path) -> bool:
    """Return whether what a path leads to, and the last link to it, is this user's or root's."""
    return is_trusted(os.stat(path)) and is_trusted(os.lstat(path))


def write_new_file(path: Path, data: bytes) -> None:
    """Write a file that must not exist yet and that nobody else can read.

    Raises:
        OSError: if something has that name, or it cannot be written.
    """
    with open_owned(path, "xb") as file:
        file.write(data)


def remove_own(path: Path, *, made: os.stat_result | None = None, keep: Sequence[str] = ()) -> None:
    """Remove a file, a link by its own name, or a folder of this user's with all that is in it.

    Nothing is removed through a link, or from a folder that is put in the place of the one that was
    looked at. It is no error if there is nothing.

    Args:
        path: what to remove.
        made: what it was when this process made it; what has its name now may be another folder.
        keep: names in the folder; they remain, and so does the folder.

    Raises:
        OSError: if it is another user's, another folder, or cannot be removed.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            _check_removable(path, os.lstat(path), made)
            path.unlink()
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _check_removable(path, os.fstat(descriptor), made)
            for name in set(os.listdir(descriptor)) - set(keep):
                inside = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISDIR(inside.st_mode):
                    shutil.rmtree(name, dir_fd=descriptor)
                else:
                    os.unlink(name, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        if not keep:
            path.rmdir()


def _check_removable(path: Path, found: os.stat_result, made: os.stat_result | None) -> None:
    if not (is_trusted(found) or is_shown_as_ours(path.parent, found)):
        raise PermissionError(f"{path} must be yours; got {describe_access(found)}")
    if made is not None and not os.path.samestat(found, made):
        raise PermissionError(f"{path} must be what was made; got something else in its place")
