"""PyTorch's folder of compiled ops: who may write it, and locks that a killed process left there.

What lies in it is loaded as code, so nobody else may change it. PyTorch takes a lock file whenever
it loads an op that was compiled at run time, as DeepSpeed's for CPUs is at every start. A process
that is killed meanwhile leaves the file, and all later ones wait for it for ever.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diablo_ds import trust

logger = logging.getLogger("diablo_ds")

LOCAL_AGE_S, SHARED_AGE_S = 30.0, 120.0
"""Age from which a lock that no process of this host has open counts as left behind: the build of
DeepSpeed's op takes about 25 s, and on a shared file system another host may be at it."""
_LOCAL_FILE_SYSTEMS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "f2fs"}
_POLL_S = 1.0


def extensions_folder() -> Path:
    """Return PyTorch's folder of compiled ops."""
    from torch.utils.cpp_extension import get_default_build_root

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())


def check_extensions(folder: Path, *, shared: bool = False) -> None:
    """Make the folder of compiled ops, or refuse one in which others could put code.

    Raises:
        ValueError: if another user can change the folder, or one in it that holds an op.
    """
    what = "folder of compiled ops"
    repair = "set TORCH_EXTENSIONS_DIR to another, or give --shared-folders to use it as it is"
    trust.make_folder(folder, what, shared=shared, repair=repair)
    for inside in (*folder.glob("*/"), *folder.glob("*/*/")):
        with suppress(FileNotFoundError):  # removed meanwhile
            trust.check_folder(inside, what, shared=shared, repair=repair)
    for library in (*folder.glob("*/*.so"), *folder.glob("*/*/*.so")):
        if not shared and library.exists() and not trust.is_own_file(library):
            raise ValueError(f"a compiled op must be your own file; got {library}; remove it")


@contextmanager
def removing_stale_locks(folder: Path) -> Iterator[None]:
    """Remove locks whose process is gone, while this is entered.

    Args:
        folder: of compiled ops.
    """
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for lock in stale_locks(folder):
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


def stale_locks(folder: Path) -> list[Path]:
    """Return the locks that no process of this host holds, and that are old enough.

    Only this user's are looked at, in real folders: whether another user's process lives cannot be
    seen, and a link leads to a file that is none of PyTorch's.
    """
    least_age = LOCAL_AGE_S if _is_local(folder) else SHARED_AGE_S
    found = []
    for lock in [*folder.glob("*/lock"), *folder.glob("*/*/lock")]:
        inside = [p for p in lock.parents if p != folder and p.is_relative_to(folder)]
        if not trust.is_own_file(lock) or any(p.is_symlink() for p in inside):
            continue
        try:
            age = time.time() - lock.stat().st_mtime
        except FileNotFoundError:
            continue  # released meanwhile
        if age >= least_age and not _is_open(lock):
            found.append(lock)
    return found


def _is_open(file: Path) -> bool:
    """Return whether a process of this host, and that we may look at, has the file open."""
    wanted = str(file.resolve())
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == wanted:
                return True
        except OSError:
            continue  # closed meanwhile, or another user's
    return False


def _is_local(path: Path) -> bool:
    """Return whether a path lies on a disk of this host, as far as /proc/mounts tells."""
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
