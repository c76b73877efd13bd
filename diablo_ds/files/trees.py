"""Folders with all that is in them: whose it is, and who can change it."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from diablo_ds.errors import UserError
from diablo_ds.files.owned import REPAIR, check_folder, make_folder
from diablo_ds.files.owners import describe_access, is_shown_as_ours, is_trusted, others_write

_UNKNOWN_OWNER = 65534
"""That Linux shows where a user namespace has no number for an owner."""
_OTHERS_ENTER, _OTHERS_CHANGE = stat.S_IXGRP | stat.S_IXOTH, stat.S_IWGRP | stat.S_IWOTH


def check_upper(folder: Path, what: str, *, repair: str = REPAIR) -> None:
    """Make a folder or check it as `check_folder` does, with those two levels below it.

    For a folder of so many files that looking at each would take seconds.

    Raises:
        UserError: if others can change one of them.
    """
    make_folder(folder, what, repair=repair)
    for inside in (*folder.glob("*/"), *folder.glob("*/*/")):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            check_folder(inside, what, repair=repair)


def check_above(folder: Path, what: str, *, repair: str = REPAIR) -> None:
    """Refuse a folder that others could put another one in the place of, at any level above it.

    For folders of code, which is loaded a while after it was checked. The sticky bit keeps each
    entry its owner's. Owners that a container does not know are taken for the host's root.

    Raises:
        UserError: if they could; names the folder above.
    """
    for above in folder.resolve().parents:
        found = os.stat(above)
        is_kept = found.st_mode & stat.S_ISVTX or not others_write(above, found)
        is_trusted_owner = is_trusted(found) or found.st_uid == _UNKNOWN_OWNER
        if not (is_kept and (is_trusted_owner or is_shown_as_ours(above, found))):
            raise UserError(
                f"{what} must not be in a folder where others could replace it, since it may "
                f"hold code; got {folder} below {above}, {describe_access(found)}; {repair}"
            )


def check_temporary_folder() -> None:
    """Refuse a folder for temporary files (TMPDIR) in which others could replace what is made.

    Raises:
        UserError: if they could.
    """
    folder = Path(tempfile.gettempdir()) / "diablo-ds-*"
    check_above(folder, "a temporary folder", repair="set TMPDIR to a folder of your own")


def check_tree(
    folder: Path, what: str, *, repair: str = REPAIR, closed_is_enough: bool = False
) -> None:
    """Refuse a folder in which, at any depth, others have placed something or can change anything.

    Of this user's own links to folders, where they lead is checked, but not what is there.

    Args:
        folder: the folder.
        what: its name in the error.
        repair: what to do if it cannot be made one's own.
        closed_is_enough: whether modes of what is in it do not matter where others cannot enter it.

    Raises:
        UserError: if there is such a thing; names it.
    """
    check_folder(folder, what, repair=repair)
    is_closed = closed_is_enough and not os.stat(folder).st_mode & _OTHERS_ENTER
    for entry in _entries(folder):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            found = entry.stat(follow_symlinks=False)
            is_ours = is_trusted(found) or found.st_uid == os.stat(folder).st_uid
            if not is_ours or (not is_closed and others_write(Path(entry.path), found)):
                raise UserError(
                    f"{what} must hold what belongs to you and is writable by nobody else; got "
                    f"{entry.path}, {describe_access(found)}; remove it, or `chmod -R go-w "
                    f"{shlex.quote(str(folder))}` if all of it is yours"
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
