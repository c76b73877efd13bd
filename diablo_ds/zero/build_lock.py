"""PyTorch's folder of compiled ops: who may write it, and locks that a killed process left there.

Its files are loaded as code, so nobody else may change them. PyTorch takes a lock file whenever it
loads an op that was compiled at run time, as DeepSpeed's for CPUs is at every start. A process that
is killed meanwhile leaves the file, and all later ones wait for it forever.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diablo_ds.files import owned, trees
from diablo_ds.ranks.log import logger

LOCAL_AGE_S = 30.0
"""On a disk of this host: age from which a lock that no process has open counts as left behind."""
SHARED_WAIT_S = 60.0
"""On a shared file system, where another host may hold it: how long a lock must be seen unchanged.
Whoever watches from the holder's host touches it all the while; clocks of hosts may differ."""
_CACHE_VARIABLES = ("TRITON_CACHE_DIR", "TRITON_HOME", "CUDA_CACHE_PATH")
_LOCAL_FILE_SYSTEMS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "f2fs"}
_POLL_S = 1.0


def extensions_folder() -> Path:
    """Return PyTorch's folder of compiled ops."""
    from torch.utils.cpp_extension import get_default_build_root

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())


def prefer_own_programs() -> None:
    """Have ops compiled by this environment's own ninja, wherever this process was started from.

    A host reached by ssh may have another ninja on its path, and each version spends minutes on
    compiling again what the other one has compiled.
    """
    own = os.path.dirname(sys.executable)
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if path[0] != own:
        os.environ["PATH"] = os.pathsep.join([own, *path])


def check_extensions(folder: Path) -> None:
    """Create the folder of compiled ops, or refuse one in which others could put code.

    Raises:
        UserError: if the folder cannot be created, or another user can change it, or has placed
            something in it.
    """
    what = "folder of compiled ops"
    repair = "set TORCH_EXTENSIONS_DIR to another, or remove it"
    owned.make_writable_folder(folder, what, "the variable TORCH_EXTENSIONS_DIR", repair=repair)
    trees.check_above(folder, what, repair=repair)
    trees.check_tree(folder, what, repair=repair)


def check_code_caches() -> None:
    """Refuse places of code that others could change: where TMPDIR and variables of caches lead.

    Raises:
        UserError: if another user can change one.
    """
    trees.check_temporary_folder()
    for name in _CACHE_VARIABLES:
        if folder := os.environ.get(name):
            repair = f"set {name} to another folder"
            trees.check_upper(Path(folder), "cache of compiled kernels", repair=repair)
            trees.check_above(Path(folder), "cache of compiled kernels", repair=repair)


@contextmanager
def removing_stale_locks(folder: Path) -> Iterator[None]:
    """Remove locks whose process is gone, while this is entered.

    Args:
        folder: of compiled ops.
    """
    done = threading.Event()
    locks = StaleLocks(folder)

    def watch() -> None:
        while not done.is_set():
            for lock in locks.find():
                with suppress(OSError):
                    lock.unlink()
                    logger.warning(f"Removed {lock}, which a killed process had left")
            done.wait(_POLL_S)

    watcher = threading.Thread(target=watch, name="build locks", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


class StaleLocks:
    """Finds the locks whose owner has ended, and refreshes those of owners alive on this host.

    Only this user's locks count, in real folders: whether another user's process is alive cannot be
    seen, and a link leads to a file that is not PyTorch's.

    Args:
        folder: of compiled ops.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._is_local = _is_local(folder)
        self._seen: dict[Path, tuple[int, float]] = {}
        """Time stamp of each lock, and when it was first seen with it."""

    def find(self) -> list[Path]:
        """Return the locks that are known by now to be left behind."""
        return [lock for lock in self._locks() if self._is_left_behind(lock)]

    def _locks(self) -> Iterator[Path]:
        for lock in [*self._folder.glob("*/lock"), *self._folder.glob("*/*/lock")]:
            inside = [p for p in lock.parents if p != self._folder]
            inside = [p for p in inside if p.is_relative_to(self._folder)]
            if owned.is_own_file(lock) and not any(p.is_symlink() for p in inside):
                yield lock

    def _is_left_behind(self, lock: Path) -> bool:
        try:
            if _is_open(lock):
                if not self._is_local:
                    os.utime(lock)  # tells other hosts that the owner is alive
                return False
            stamp = lock.stat().st_mtime_ns
        except OSError:  # released meanwhile
            return False
        if self._is_local:
            return time.time() - stamp / 1e9 >= LOCAL_AGE_S
        now = time.monotonic()
        if self._seen.get(lock, (0, 0.0))[0] != stamp:
            self._seen[lock] = (stamp, now)
        return now - self._seen[lock][1] >= SHARED_WAIT_S


def _is_open(file: Path) -> bool:
    """Return whether a process on this host that this user may inspect has the file open."""
    wanted = str(file.resolve())
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == wanted:
                return True
        except OSError:
            continue  # closed meanwhile, or another user's
    return False


def _is_local(path: Path) -> bool:
    """Return whether a path is on a disk of this host, as far as /proc/mounts tells."""
    path = path.resolve()
    best, kind = Path("/"), ""
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        _, mount, file_system, *_ = line.split(" ")
        if path.is_relative_to(mount) and len(Path(mount).parts) >= len(best.parts):
            best, kind = Path(mount), file_system
    return kind in _LOCAL_FILE_SYSTEMS
