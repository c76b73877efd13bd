"""The system calls that Python 3.11 has no function for."""

from __future__ import annotations

import ctypes
import os

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
# Of the call's parts, ctypes loads what it needs at the first use: here, ahead of the walls.
_libc.syscall.restype = ctypes.c_long


def _check(result: int, name: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process."""
    arguments = [ctypes.c_ulong(v) for v in (value, 0, 0, 0)]
    _check(_libc.prctl(ctypes.c_int(option), *arguments), "prctl")


def unshare(flags: int) -> None:
    """Give this process namespaces of its own."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Mount a file system, or change how one is mounted."""
    texts = [text.encode() for text in (source, target, kind)]
    result = _libc.mount(*texts, ctypes.c_ulong(flags), data.encode() or None)
    _check(result, f"mount {target}")


def unmount(target: str, flags: int) -> None:
    """Unmount a file system."""
    _check(_libc.umount2(target.encode(), ctypes.c_int(flags)), f"umount {target}")


def syscall(name: str, number: int, *arguments: object) -> int:
    """Make a system call by its number; the arguments are of ctypes' types."""
    return _check(_libc.syscall(ctypes.c_long(number), *arguments), name)


def drop_capabilities() -> None:
    """Give up every privilege that a user ID of 0 has in a user namespace."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    nothing = (ctypes.c_uint32 * 6)()
    _check(_libc.capset(header, nothing), "capset")
