"""Who else can change what this process is about to use: folders, and the files found in them.

On a shared machine a folder may have been made by somebody else, and a file in it may be a link to
one of the user's own, a pipe, or a message that another user left. Only the standard library is
used here: a guard lives beside every rank and has to stay small.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path
from typing import IO

from diablo_ds.errors import UserError

PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
"""Modes of what a run makes, whatever the umask is."""
_REPAIR = "choose another, or give --shared-folders to use it as it is"
_PARENT_FOLDER = 0o755
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_MAX_READ_BYTES = 1 << 20


def check_folder(folder: Path, what: str, *, shared: bool = False, repair: str = _REPAIR) -> None:
    """Refuse a folder whose content other users can change.

    It has to belong to this user or to root, and others must not write to it, unless the sticky bit
    keeps each file its owner's. A group counts as others if it may have other members.

    Args:
        folder: an existing folder.
        what: its name in the error, such as "log folder".
        shared: accept it as it is: the user knows who the others are.
        repair: what to do if it cannot be made one's own, for the error.

    Raises:
        UserError: if others can change it; names owner, group and mode.
    """
    if shared:
        return
    found = os.stat(folder)
    # A link that somebody else made may lead anywhere tomorrow.
    link = os.lstat(folder)
    if not _is_trusted(link.st_uid):
        found = link
    if _is_trusted(found.st_uid) and not _others_write(folder, found):
        return
    raise UserError(
        f"{what} must belong to you and be writable by nobody else; got {folder}, "
        f"{describe_access(found)}; `chmod go-w` it if it is yours, {repair}"
    )


def make_folder(folder: Path, what: str, *, shared: bool = False, repair: str = _REPAIR) -> None:
    """Make a folder for this user alone, mode 0700, or check the one that is there.

    Missing parents are made too, with mode 0755 or what the umask leaves of it.

    Raises:
        OSError: if it cannot be made.
        UserError: if others can change the one that is there.
    """
    missing = [parent for parent in folder.parents if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(_PARENT_FOLDER, exist_ok=True)
    folder.mkdir(PRIVATE_FOLDER, exist_ok=True)
    check_folder(folder, what, shared=shared, repair=repair)


def make_writable_folder(
    folder: Path, what: str, remedy: str, *, shared: bool = False, repair: str = _REPAIR
) -> None:
    """Make a folder as `make_folder` does, and say what helps where it cannot be written.

    Args:
        folder: the folder.
        what: its name in the error.
        remedy: what another folder can be named with.
        shared: accept a folder that others can change.
        repair: what helps where others can change it.

    Raises:
        UserError: if it cannot be made or written, or others can change the one that is there.
    """
    reason = "no permission to write"
    try:
        make_folder(folder, what, shared=shared, repair=repair)
        if os.access(folder, os.W_OK | os.X_OK):
            return
    except OSError as error:
        reason = str(error)
    raise UserError(f"{what} must be writable; got {folder}: {reason}; name another with {remedy}")


def describe_access(found: os.stat_result) -> str:
    """Return owner, group and mode as text."""
    return (
        f"owner {_user_name(found.st_uid)}, group {_group_name(found.st_gid)}, "
        f"mode {stat.S_IMODE(found.st_mode):04o}"
    )


def open_own_file(path: Path, flags: int) -> int:
    """Open a regular file of this user, or make one that nobody else can read.

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
    descriptor = os.open(
        path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode=PRIVATE_FILE
    )
    try:
        found = os.fstat(descriptor)
        is_written = flags & (os.O_WRONLY | os.O_RDWR)
        if not stat.S_ISREG(found.st_mode) or (is_written and found.st_nlink != 1):
            raise PermissionError(f"{path} must be a regular file with one name")
        if not _is_own(found.st_uid, path.parent):
            raise PermissionError(f"{path} must be yours; got {describe_access(found)}")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def append_to_own_file(path: Path) -> IO[bytes]:
    """Open a file of this user's to append to it, or make it. Raises as `open_own_file` does."""
    return os.fdopen(open_own_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")


def read_own_file(path: Path) -> bytes:
    """Return the content of a small file of this user's. Raises as `open_own_file` does."""
    with os.fdopen(open_own_file(path, os.O_RDONLY), "rb") as file:
        return file.read(_MAX_READ_BYTES)


def is_own_file(path: Path) -> bool:
    """Return whether there is such a file and it is this user's: no link, pipe or folder."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and _is_own(found.st_uid, path.parent)


def has_trusted_owner(path: Path) -> bool:
    """Return whether what a path leads to, and the last link to it, is this user's or root's."""
    return _is_trusted(os.stat(path).st_uid) and _is_trusted(os.lstat(path).st_uid)


def write_new_file(path: Path, data: bytes) -> None:
    """Write a file that must not exist yet and that nobody else can read.

    Raises:
        OSError: if something has that name, or it cannot be written.
    """
    with os.fdopen(open_own_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
        file.write(data)


def _is_trusted(uid: int) -> bool:
    return uid in (os.geteuid(), 0)


def _is_own(uid: int, folder: Path) -> bool:
    """Return whether a file's owner is this user, or the owner of a folder that was accepted.

    The second is so where a file system shows other owners, as in a container or over NFS.
    """
    return _is_trusted(uid) or uid == os.stat(folder).st_uid


def _others_write(path: Path, found: os.stat_result) -> bool:
    """Return whether others than the owner can add, remove or change files in a folder."""
    mode = found.st_mode
    if stat.S_ISLNK(mode) or not mode & _OTHERS_WRITE or mode & stat.S_ISVTX:
        return False
    return bool(mode & stat.S_IWOTH) or not _is_private_group(path, found)


def _is_private_group(path: Path, found: os.stat_result) -> bool:
    """Return whether a folder's group is the one that many systems make for each user alone."""
    if _has_acl(path):  # the group's bits then stand for every user that it names
        return False
    try:
        group, user = grp.getgrgid(found.st_gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    is_primary = group.gr_gid == user.pw_gid and group.gr_name == user.pw_name
    return is_primary and set(group.gr_mem) <= {user.pw_name}


def _has_acl(path: Path) -> bool:
    try:
        return bool(os.getxattr(path, "system.posix_acl_access"))
    except OSError:
        return False


def _user_name(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"gid {gid}"
