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
import getpass
import json
import logging
import os
import re
import secrets
import socket
import stat
import threading
import time
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from diablo_ds.errors import UserError

logger = logging.getLogger("diablo_ds")

OWNER_FOLDER = ".owner"
BEAT_S = 5.0
"""Seconds between heartbeats."""
DEAD_AFTER_S = 30.0
"""An owner on another machine counts as dead when its heartbeat stood still for so long."""
_NUMBERED = re.compile(r"(\d{9})\.json")
_RECORD_BYTES = 2048
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_GONE = {errno.ENOENT, errno.ESTALE, errno.ENOTDIR}


@dataclass(frozen=True)
class Owner:
    """Who owns a folder, as its file tells."""

    token: str
    host: str
    machine: str
    """Identity of the running kernel and of its space of process ids."""
    pid: int
    started: int
    """Start of the process, in clock ticks since the machine's own start."""
    user: str
    since: str
    """Local time of the claim, with its offset from UTC."""
    job: str = ""
    """Number of the SLURM job; empty outside of one."""
    beats: int = 0
    released: bool = False

    def text(self) -> str:
        """Return who it is, for people."""
        job = f", SLURM job {self.job}" if self.job else ""
        return f"process {self.pid} of {self.user} on {self.host}{job}, since {self.since}"


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
            os.pwrite(self._descriptor, _to_bytes(owner), 0)
            os.fsync(self._descriptor)

    def _lost_to(self) -> str:
        """Return how the folder was lost; empty where it was not."""
        try:
            numbers = _numbers(self.folder)
            if numbers and max(numbers) > self._number:
                owner = _parse(_read(_file(self.folder, max(numbers))))
                return f"taken over by {owner.text() if owner else 'another process'}"
            mine = _parse(_read(_file(self.folder, self._number)))
        except OSError as error:
            if error.errno not in _GONE:
                raise
            mine = None
        return "" if mine and mine.token == self._owner.token else "whose owner's file is gone"


def claim(folder: Path, what: str) -> FolderOwner:
    """Become the only owner of an existing folder.

    Where its last owner was on another machine and has not given it back, this waits for up to
    `DEAD_AFTER_S` to see whether its heartbeat goes on.

    Args:
        folder: the folder.
        what: what to call it in an error.

    Raises:
        UserError: if another process owns it; names that process.
        OSError: if the folder cannot be written.
    """
    _make_owner_folder(folder)
    while True:
        number = max(_numbers(folder), default=0)
        if number and not _is_free(folder, number, what):
            continue  # another process went ahead
        claimed = _create(folder, number + 1)
        if claimed is None:
            continue
        descriptor, owner = claimed
        if max(_numbers(folder), default=0) != number + 1:  # others came and went meanwhile
            os.close(descriptor)
            _file(folder, number + 1).unlink(missing_ok=True)
            continue
        for older in _numbers(folder):
            if older <= number:
                with contextlib.suppress(OSError):
                    _file(folder, older).unlink()
        return FolderOwner(folder, what, number + 1, descriptor, owner)


def refuse_owned(folder: Path, what: str) -> None:
    """Raise UserError where a living process of this machine owns the folder; writes nothing."""
    number = max(_numbers(folder), default=0)
    if not number:
        return
    with contextlib.suppress(FileNotFoundError):
        owner = _parse(_read(_file(folder, number)))
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
            data = _read(_file(folder, number))
        except FileNotFoundError:
            return False
        owner = _parse(data)
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
    if owner.machine != _machine() or not owner.started:
        return None
    return _start_of(owner.pid) != owner.started


def _in_use(folder: Path, what: str, owner: Owner | None) -> UserError:
    who = owner.text() if owner else "another process, which has not left its name"
    return UserError(
        f"{what} must not be in use by another process; got {folder}, in use by {who}; wait for "
        f"it, stop it, or choose another folder (should there be no such process, as where the "
        f"folder is a copy, remove {folder / OWNER_FOLDER})"
    )


# --- the owner's file ----------------------------------------------------------------------------


def _create(folder: Path, number: int) -> tuple[int, Owner] | None:
    """Create a numbered file, whole from the first moment; None where it exists already."""
    owner = Owner(
        token=secrets.token_hex(16),
        host=socket.gethostname()[:255],
        machine=_machine(),
        pid=os.getpid(),
        started=_start_of(os.getpid()) or 0,
        user=_user(),
        since=datetime.now().astimezone().isoformat(timespec="seconds"),
        job=os.environ.get("SLURM_JOB_ID", "")[:64],
    )
    path = _file(folder, number)
    temporary = path.with_name(f".{owner.token}.tmp")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(temporary, flags, 0o600)
        try:
            os.pwrite(descriptor, _to_bytes(owner), 0)
            os.fsync(descriptor)
            if _link(temporary, path, descriptor):
                return descriptor, owner
        finally:
            temporary.unlink(missing_ok=True)
        os.close(descriptor)
    except FileNotFoundError:  # the whole folder was removed meanwhile
        _make_owner_folder(folder)
    return None


def _link(temporary: Path, path: Path, descriptor: int) -> bool:
    """Give the file its name; return False where that exists already."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        # A network file system may repeat a request whose answer was lost.
        return os.fstat(descriptor).st_nlink == 2
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _create_without_links(temporary, path)
    return True


def _create_without_links(temporary: Path, path: Path) -> bool:
    """Reserve the name first, and then move the file there."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    temporary.replace(path)
    return True


def _make_owner_folder(folder: Path) -> None:
    path = folder / OWNER_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if not stat.S_ISDIR(path.lstat().st_mode):
        raise UserError(f"{OWNER_FOLDER} must be a folder, and no link; got {path}; remove it")


def _numbers(folder: Path) -> list[int]:
    try:
        names = os.listdir(folder / OWNER_FOLDER)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [int(match[1]) for name in names if (match := _NUMBERED.fullmatch(name))]


def _file(folder: Path, number: int) -> Path:
    return folder / OWNER_FOLDER / f"{number:09d}.json"


def _read(path: Path) -> bytes:
    """Read an owner's file, which may be anything by now."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UserError(f"owner's file must be a regular file; got {path}; remove it")
        return os.read(descriptor, 2 * _RECORD_BYTES)
    finally:
        os.close(descriptor)


def _to_bytes(owner: Owner) -> bytes:
    return f"{json.dumps(asdict(owner)):{_RECORD_BYTES - 1}}\n".encode()


def _parse(data: bytes) -> Owner | None:
    """Return the owner that a file names; None for anything else."""
    try:
        values: Any = json.loads(data)
        types = {name: type(value) for name, value in asdict(_EXAMPLE).items()}
        if {name: type(value) for name, value in values.items()} == types:
            return Owner(**values)
    except (ValueError, AttributeError, RecursionError):
        pass
    return None


_EXAMPLE = Owner("", "", "", 0, 0, "", "")


# --- this machine --------------------------------------------------------------------------------


def _machine() -> str:
    """Return what tells this machine, since its start, and its container's process ids apart."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} without /proc"


def _start_of(pid: int) -> int | None:
    """Return when a living process started, in clock ticks; None where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def _user() -> str:
    try:
        return getpass.getuser()[:64]
    except (OSError, KeyError):  # a user id without a name, as in some containers
        return f"user {os.getuid()}"
