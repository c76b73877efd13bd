"""The first wall: a file system, a network and process IDs of its own, by Linux namespaces."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
from collections.abc import Sequence

from diablo_ds.evaluation.sandbox import calls

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_CLONE_NEWNET = 0x40000000
_ALL = _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWUSER | _CLONE_NEWPID | _CLONE_NEWNET

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR = 442
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4

NOBODY = 65534
"""The user ID that root becomes, since limits do not hold for root."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


def leave() -> None:
    """Give this process new namespaces, in which it may mount; its next child is the first process.

    Raises:
        OSError: if the kernel does not permit it.
    """
    ready, go = os.pipe()
    me, uid, gid = os.getpid(), os.getuid(), os.getgid()
    mapper = os.fork()
    if mapper == 0:  # stays outside, from where more than one user ID may be mapped
        status = 1
        with contextlib.suppress(OSError):
            os.close(go)
            if os.read(ready, 1):
                _map_users(me, uid, gid)
                status = 0
        os._exit(status)
    os.close(ready)
    try:
        calls.unshare(_ALL)
        os.write(go, b"1")
    finally:
        os.close(go)
        _, status = os.waitpid(mapper, 0)
    if status:
        raise OSError(errno.EPERM, "user IDs of a namespace cannot be mapped")


def _map_users(pid: int, uid: int, gid: int) -> None:
    nobody = f"{NOBODY} {NOBODY} 1\n" if uid == 0 else ""
    entries = {"uid_map": f"0 {uid} 1\n{nobody}", "gid_map": f"0 {gid} 1\n{nobody}"}
    if uid != 0:
        entries = {"setgroups": "deny", **entries}
    for name, text in entries.items():
        with open(f"/proc/{pid}/{name}", "w") as file:
            file.write(text)


def enter_root(folder: str, readable: Sequence[str], file_bytes: int) -> None:
    """Put this process into a file system with some folders, read-only, and an empty /tmp.

    Args:
        folder: an empty one, on which the new file system is built.
        readable: files and folders that are seen, at their own paths.
        file_bytes: what fits into /tmp.

    Raises:
        OSError: if the kernel does not permit it.
    """
    calls.mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    calls.mount("tmpfs", folder, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    for path in dict.fromkeys([*readable, *DEVICES]):
        if os.path.exists(path):
            _bind(path, folder + path)
    os.makedirs(f"{folder}/tmp", exist_ok=True)
    options = f"size={file_bytes},nr_inodes=4096,mode=1777"
    calls.mount("tmpfs", f"{folder}/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, options)
    os.mkdir(f"{folder}/former")
    pivot_root = _PIVOT_ROOT[platform.machine()]
    former = f"{folder}/former".encode()
    calls.syscall(
        "pivot_root", pivot_root, ctypes.c_char_p(folder.encode()), ctypes.c_char_p(former)
    )
    os.chdir("/tmp")
    calls.unmount("/former", _MNT_DETACH)
    os.rmdir("/former")
    calls.mount("none", "/", "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)


def _bind(path: str, target: str) -> None:
    """Show a file or folder at another path too, read-only."""
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "w"):
            pass
    calls.mount(path, target, "", _MS_BIND | _MS_REC)
    attributes = (ctypes.c_uint64 * 4)(_ATTR_RDONLY | _ATTR_NOSUID, 0, 0, 0)
    try:
        calls.syscall(
            "mount_setattr",
            _MOUNT_SETATTR,
            ctypes.c_int(_AT_FDCWD),
            ctypes.c_char_p(target.encode()),
            ctypes.c_uint(_AT_RECURSIVE),
            ctypes.byref(attributes),
            ctypes.c_size_t(ctypes.sizeof(attributes)),
        )
    except OSError as error:
        if error.errno != errno.ENOSYS:  # older than Linux 5.12
            raise
        # Flags that are set already must stay, as far as they are the same numbers in both calls.
        kept = os.statvfs(target).f_flag & (_MS_NOSUID | _MS_NODEV | _MS_NOEXEC | 1024 | 2048)
        calls.mount("none", target, "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | kept)


def become_nobody() -> None:
    """Give up all privileges, and root's user ID where this process has it outside as well."""
    with contextlib.suppress(OSError):  # not mapped where the user is not root
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    calls.drop_capabilities()
