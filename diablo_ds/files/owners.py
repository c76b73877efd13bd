"""Whose a folder or file is, and who else can change it. Only the standard library is used here."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import tempfile
from pathlib import Path

from diablo_ds.files import modes


def describe_access(found: os.stat_result) -> str:
    """Return owner, group and mode as text."""
    return (
        f"owner={_user_name(found.st_uid)}, group={_group_name(found.st_gid)}, "
        f"mode={stat.filemode(found.st_mode)}"
    )


def is_trusted(found: os.stat_result) -> bool:
    """Return whether something is this user's, root's or, if these are trusted, a team's."""
    if found.st_uid in (os.geteuid(), 0):
        return True
    if not modes.allows_group_write():
        return False
    return os.geteuid() == 0 or found.st_gid in (os.getegid(), *os.getgroups())


def is_shown_as_ours(folder: Path, found: os.stat_result) -> bool:
    """Return whether the file system of a folder gives this user's files that owner.

    Some do so over NFS, where the server maps users.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_uid == found.st_uid
    except OSError:
        return False


def is_own(path: Path, found: os.stat_result) -> bool:
    """Return whether a file is this user's alone: nobody else owns it or can write to it.

    The owner may also be that of its folder, which was accepted: some file systems show other
    owners, as in a container or over NFS.
    """
    is_ours = is_trusted(found) or found.st_uid == os.stat(path.parent).st_uid
    return is_ours and not others_write(path, found)


def others_write(path: Path, found: os.stat_result) -> bool:
    """Return whether others than the owner can change a file, or what is in a folder.

    A group counts as others if it may have other members, and is not trusted. Where a team is
    trusted, a file system that shows the same mode for all files, as some network shares do, says
    nothing about others.
    """
    mode = found.st_mode
    if stat.S_ISLNK(mode) or not mode & (stat.S_IWGRP | stat.S_IWOTH):
        return False
    if mode & stat.S_IWOTH:
        folder = path if stat.S_ISDIR(mode) else path.parent
        return not modes.allows_group_write() or keeps_modes(folder)
    return not (modes.allows_group_write() or _is_private_group(path, found))


def keeps_modes(folder: Path) -> bool:
    """Return whether the file system of a folder shows a mode as it was set."""
    try:
        with tempfile.TemporaryDirectory(prefix=".mode-", dir=folder) as made:
            return not os.stat(made).st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    except OSError:
        return True


def _is_private_group(path: Path, found: os.stat_result) -> bool:
    """Return whether something's group is the one that many systems make for each user alone."""
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
