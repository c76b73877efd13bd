"""One living owner for a folder that several processes could write: claimed, kept, given back.

The owner's file lies in the hidden folder `.owner`, numbered. Claiming means creating the next
number, which one process alone can do, on network file systems too, where advisory locks may not
hold. The file with the highest number is never removed, only marked as given back: so a process
that looked at the folder a while ago cannot become a second owner.

Whether an owner lives is judged on its own machine by process id and start time; from another
machine by its heartbeat, a count in the file, as the reader sees it change, since clocks differ.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from diablo_ds.errors import UserError
from diablo_ds.files.layout import OWNER_FOLDER
from diablo_ds.files.owner_file import (
    Owner,
    create,
    machine,
    make_owner_folder,
    numbers,
    owner_file,
    parse,
    read,
    start_of,
    to_bytes,
)

logger = logging.getLogger("diablo_ds")

BEAT_S = 5.0
"""Seconds between heartbeats."""
DEAD_AFTER_S = 30.0
"""Seconds without a heartbeat after which an owner on another machine counts as dead."""
_GONE = {errno.ENOENT, errno.ESTALE, errno.ENOTDIR}


class FolderOwner:
    """A folder that this process owns; see `claim`.

    While it lives, a thread writes the heartbeat and looks whether the folder is still its own.
    """

    def __init__(self, folder: Path, what: str, number: int, descriptor: int, owner: Owner) -> None:
        self.folder = folder
        self.is_lost = False
        """Whether the folder was found to be no longer this process's."""
        self._what = what
        self._number = number
        self._descriptor = descriptor
        self._owner = owner
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="owner", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Make sure that the folder is still this process's; called before each write of weight.

        Raises:
            UserError: if another process took it over, or the owner's file was removed.
        """
        lost_to = self._lost_to()
        if lost_to:
            self.is_lost = True
            raise UserError(
                f"{self._what} must stay this process's while it writes; got {self.folder}, "
                f"{lost_to}; nothing more is written to it"
            )

    def release(self) -> None:
        """Give the folder back, so that the next process need not wait."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        self._write(replace(self._owner, released=True))
        os.close(self._descriptor)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            self._owner = replace(self._owner, beats=self._owner.beats + 1)
            self._write(self._owner)
            with contextlib.suppress(OSError, ValueError):  # to be seen at the next write
                self.is_lost = self.is_lost or bool(self._lost_to())

    def _write(self, owner: Owner) -> None:
        """Write to the file that this process made, wherever it is now: never to a successor's."""
        with contextlib.suppress(OSError):
            os.pwrite(self._descriptor, to_bytes(owner), 0)
            os.fsync(self._descriptor)

    def _lost_to(self) -> str:
        """Return how the folder was lost; empty where it was not."""
        try:
            last = max(numbers(self.folder), default=0)
            if last > self._number:
                owner = parse(read(owner_file(self.folder, last)))
                return f"taken over by {owner.text() if owner else 'another process'}"
            mine = parse(read(owner_file(self.folder, self._number)))
        except OSError as error:
            if error.errno not in _GONE:
                raise
            mine = None
        return "" if mine and mine.token == self._owner.token else "whose owner's file is gone"


def claim(folder: Path, what: str) -> FolderOwner:
    """Become the only owner of an existing folder.

    Where its last owner was on another machine and has not given it back, this waits for up to
    `DEAD_AFTER_S` to see whether its heartbeat continues.

    Args:
        folder: the folder.
        what: what to call it in an error.

    Raises:
        UserError: if another process owns it; names that process.
        OSError: if the folder cannot be written.
    """
    make_owner_folder(folder)
    while True:
        number = max(numbers(folder), default=0)
        if number and not _is_free(folder, number, what):
            continue  # another process went ahead
        claimed = create(folder, number + 1)
        if claimed is None:
            continue
        descriptor, owner = claimed
        if max(numbers(folder), default=0) != number + 1:  # others came and went meanwhile
            os.close(descriptor)
            owner_file(folder, number + 1).unlink(missing_ok=True)
            continue
        for older in numbers(folder):
            if older <= number:
                with contextlib.suppress(OSError):
                    owner_file(folder, older).unlink()
        return FolderOwner(folder, what, number + 1, descriptor, owner)


def living_owner(folder: Path) -> str:
    """Return who owns the folder, for people; empty unless a living process of this machine."""
    number = max(numbers(folder), default=0)
    owner = None
    if number:
        with contextlib.suppress(FileNotFoundError):
            owner = parse(read(owner_file(folder, number)))
    return owner.text() if owner is not None and _is_dead(owner) is False else ""


class LastOwner(NamedTuple):
    """Who owned a folder last, as far as any host that sees it can tell."""

    owner: Owner
    is_alive: bool
    """By its process on its own machine; elsewhere by its heartbeat and this host's clock."""
    heartbeat_age_s: float
    """Seconds since its file was written."""


def last_owner(folder: Path) -> LastOwner | None:
    """Return who owns a folder or owned it last, whoever that is; None where nobody is known."""
    number = max(numbers(folder), default=0)
    path = owner_file(folder, number)
    try:
        owner = parse(read(path)) if number else None
        age_s = max(0.0, time.time() - path.stat().st_mtime) if owner is not None else 0.0
    except (OSError, UserError):
        return None
    if owner is None:
        return None
    is_dead = _is_dead(owner)
    is_alive = age_s < DEAD_AFTER_S if is_dead is None else not is_dead
    return LastOwner(owner, is_alive, age_s)


def refuse_owned(folder: Path, what: str) -> None:
    """Raise UserError where a living process of this machine owns the folder; writes nothing."""
    number = max(numbers(folder), default=0)
    if not number:
        return
    with contextlib.suppress(FileNotFoundError):
        owner = parse(read(owner_file(folder, number)))
        if owner is not None and _is_dead(owner) is False:
            raise _in_use(folder, what, owner)


def _is_free(folder: Path, number: int, what: str) -> bool:
    """Return whether the owner with this number is gone, after a wait where that takes one.

    Returns:
        False where the file went away meanwhile, and all has to be looked at again.

    Raises:
        UserError: if the owner lives.
    """
    first, has_told = None, False
    deadline = time.monotonic() + DEAD_AFTER_S
    while True:
        try:
            data = read(owner_file(folder, number))
        except FileNotFoundError:
            return False
        owner = parse(data)
        is_dead = _is_dead(owner) if owner is not None else None
        if is_dead:
            return True
        first = data if first is None else first
        if is_dead is False or data != first:
            raise _in_use(folder, what, owner)
        if time.monotonic() >= deadline:
            return True
        if not has_told:
            has_told = True
            who = owner.text() if owner else "a process that has not left its name"
            logger.warning(
                f"{folder} was last used by {who}; waiting {DEAD_AFTER_S:.0f} s to see whether "
                "that still runs"
            )
        time.sleep(min(1.0, DEAD_AFTER_S / 10))


def _is_dead(owner: Owner) -> bool | None:
    """Return whether an owner is gone; None where this machine cannot tell."""
    if owner.released:
        return True
    if owner.machine != machine() or not owner.started:
        return None
    return start_of(owner.pid) != owner.started


def _in_use(folder: Path, what: str, owner: Owner | None) -> UserError:
    who = owner.text() if owner else "another process, which has not left its name"
    return UserError(
        f"{what} must not be in use by another process; got {folder}, in use by {who}; wait for "
        f"it, stop it, or choose another folder (should there be no such process, as where the "
        f"folder is a copy, remove {folder / OWNER_FOLDER})"
    )
