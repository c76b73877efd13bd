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
from collections.abc import Iterator
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

_REPAIR = "choose another, or give --allow-group-write if its group shares it on purpose"
_MAX_READ_BYTES = 1 << 20
_OTHERS_ENTER, _OTHERS_CHANGE = stat.S_IXGRP | stat.S_IXOTH, stat.S_IWGRP | stat.S_IWOTH
_FLAGS = {
    "r": os.O_RDONLY,
    "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "w": os.O_WRONLY | os.O_CREAT,
    "x": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
}


# --- folders -------------------------------------------------------------------------------------


def check_folder(folder: Path, what: str, *, repair: str = _REPAIR) -> None:
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


def make_folder(folder: Path, what: str, *, repair: str = _REPAIR) -> None:
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


def make_writable_folder(folder: Path, what: str, remedy: str, *, repair: str = _REPAIR) -> None:
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


def check_tree(folder: Path, what: str, *, repair: str = _REPAIR) -> None:
    """Refuse a folder in which, at any depth, others have placed something or can change anything.

    Of this user's own links to folders, where they lead is checked, but not what is there.

    Raises:
        UserError: if there is such a thing; names it.
    """
    check_folder(folder, what, repair=repair)
    for entry in _entries(folder):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            found = entry.stat(follow_symlinks=False)
            is_ours = is_trusted(found) or found.st_uid == os.stat(folder).st_uid
            if not is_ours or others_write(Path(entry.path), found):
                raise UserError(
                    f"{what} must hold what belongs to you and is writable by nobody else; got "
                    f"{entry.path}, {describe_access(found)}; remove it, or `chmod -R go-w "
                    f"{folder}` if all of it is yours"
                )
            if stat.S_ISLNK(found.st_mode) and entry.is_dir():
                check_folder(Path(entry.path), what, repair=repair)


def close_tree(folder: Path) -> None:
    """Take from others the right to write to what this user made where they cannot enter.

    The right was never used then, as where an earlier version obeyed the umask of a project.
    """
    found = os.stat(folder)
    if found.st_uid != os.geteuid() or found.st_mode & _OTHERS_ENTER:
        return
    for entry in _entries(folder):
        with contextlib.suppress(FileNotFoundError):
            inside = entry.stat(follow_symlinks=False)
            mode = inside.st_mode
            if inside.st_uid != found.st_uid or stat.S_ISLNK(mode):
                continue
            if mode & _OTHERS_CHANGE:
                os.chmod(entry.path, stat.S_IMODE(mode) & ~_OTHERS_CHANGE)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield all that is in a folder, at any depth; a folder before what is in it."""
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    yield from _entries(Path(entry.path))


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


def open_owned(path: Path, mode: str = "rb", **options: Any) -> IO[Any]:
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
    return open_owned(path, "ab")


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


def remove_own(path: Path) -> None:
    """Remove a file, a link by its own name, or a folder of this user's with all that is in it.

    Nothing is removed through a link. It is no error if there is nothing.

    Raises:
        OSError: if it is another user's, or cannot be removed.
    """
    with contextlib.suppress(FileNotFoundError):
        found = os.lstat(path)
        if not (is_trusted(found) or is_shown_as_ours(path.parent, found)):
            raise PermissionError(f"{path} must be yours; got {describe_access(found)}")
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()
