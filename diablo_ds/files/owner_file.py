"""The file that tells who owns a folder: numbered, created once, read whatever it is by then.

It lies in the hidden folder `.owner` of the folder that is owned.
"""

from __future__ import annotations

import errno
import getpass
import json
import os
import re
import secrets
import socket
import stat
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from diablo_ds.errors import UserError
from diablo_ds.files import modes, owned, strict_json
from diablo_ds.files.bounds import read_start
from diablo_ds.files.layout import OWNER_FOLDER
from diablo_ds.files.process_status import process_status

_NUMBERED = re.compile(r"(\d{9})\.json")
_RECORD_BYTES = 2048
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


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


def create(folder: Path, number: int) -> tuple[int, Owner] | None:
    """Create a numbered file, complete from the first moment; None where it exists already."""
    owner = Owner(
        token=secrets.token_hex(16),
        host=socket.gethostname()[:255],
        machine=machine(),
        pid=os.getpid(),
        started=start_of(os.getpid()) or 0,
        user=_user(),
        since=datetime.now().astimezone().isoformat(timespec="seconds"),
        job=os.environ.get("SLURM_JOB_ID", "")[:64],
    )
    path = owner_file(folder, number)
    temporary = path.with_name(f".{owner.token}.tmp")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(temporary, flags, modes.PRIVATE_FILE)
        modes.set_mode(descriptor)
        try:
            os.pwrite(descriptor, to_bytes(owner), 0)
            os.fsync(descriptor)
            if _link(temporary, path, descriptor):
                return descriptor, owner
        finally:
            temporary.unlink(missing_ok=True)
        os.close(descriptor)
    except FileNotFoundError:  # the folder itself was removed meanwhile
        make_owner_folder(folder)
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
        owned.write_new_file(path, b"")
    except FileExistsError:
        return False
    temporary.replace(path)
    return True


def make_owner_folder(folder: Path) -> None:
    """Make a folder, and the one for its owner's file; raise UserError where that is a link."""
    path = folder / OWNER_FOLDER
    owned.make_parents(path)
    if not owned.new_folder(path):
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise UserError(f"{OWNER_FOLDER} must be a folder, and no link; got {path}; remove it")
        owned.check_folder(path, "the folder of an owner's file", repair="remove it")


def numbers(folder: Path) -> list[int]:
    """Return the numbers of the owner's files that a folder has; the highest is in force."""
    try:
        names = os.listdir(folder / OWNER_FOLDER)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [int(match[1]) for name in names if (match := _NUMBERED.fullmatch(name))]


def owner_file(folder: Path, number: int) -> Path:
    """Return where the owner's file with a number is."""
    return folder / OWNER_FOLDER / f"{number:09d}.json"


def read(path: Path) -> bytes:
    """Read an owner's file, which may be anything by now. Raises as `read_start` does."""
    return read_start(path, 2 * _RECORD_BYTES)


def to_bytes(owner: Owner) -> bytes:
    """Return the content of an owner's file; of equal length, so that it is written in place."""
    return f"{json.dumps(asdict(owner)):{_RECORD_BYTES - 1}}\n".encode()


def parse(data: bytes) -> Owner | None:
    """Return the owner that a file names; None for anything else."""
    try:
        values: Any = strict_json.loads(data)
        types = {name: type(value) for name, value in asdict(_EXAMPLE).items()}
        if {name: type(value) for name, value in values.items()} == types:
            return Owner(**values)
    except (ValueError, AttributeError, RecursionError):
        pass
    return None


_EXAMPLE = Owner("", "", "", 0, 0, "", "")


def machine() -> str:
    """Return what tells this machine, since its start, and its container's process ids apart."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} without /proc"


def start_of(pid: int) -> int | None:
    """Return when a living process started, in clock ticks; None where there is none."""
    try:
        status = process_status(pid)
    except OSError:
        return None
    return None if status.state in ("Z", "X") else status.started


def _user() -> str:
    try:
        return getpass.getuser()[:64]
    except (OSError, KeyError):  # a user id without a name, as in some containers
        return f"user {os.getuid()}"
