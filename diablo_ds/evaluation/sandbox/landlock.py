"""The second wall: Landlock, by which a process gives up files, TCP and signals (Linux 5.13 on).

The kernel's documentation: https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

from diablo_ds.evaluation.sandbox import calls

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1, 2, 4, 8, 1 << 14
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _READ_FILE
_NUM_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # 16 from version 5 on
_NET = 3
"""Binding and connecting TCP sockets."""
_SCOPED = 3
"""Abstract Unix sockets, and signals, to processes outside."""


class _Attributes(ctypes.Structure):
    _fields_ = (
        ("files", ctypes.c_uint64),
        ("net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("fd", ctypes.c_int32))


def version() -> int:
    """Return the version of Landlock's interface; 0 where the kernel has none."""
    try:
        return calls.syscall(
            "landlock_create_ruleset",
            _CREATE_RULESET,
            None,
            ctypes.c_size_t(0),
            ctypes.c_uint32(_VERSION_FLAG),
        )
    except OSError:
        return 0


def restrict(readable: Sequence[str], writable: Sequence[str]) -> None:
    """Let this process, for good, read some files and folders, write to others, and use no TCP.

    Args:
        readable: files and folders.
        writable: folders that are read and written.

    Raises:
        OSError: if the kernel has no Landlock.
    """
    known = version()
    rights = (1 << _NUM_FILE_RIGHTS.get(known, 16)) - 1
    attributes = _Attributes(rights, _NET if known >= 4 else 0, _SCOPED if known >= 6 else 0)
    size = 8 if known < 4 else 16 if known < 6 else 24
    ruleset = calls.syscall(
        "landlock_create_ruleset",
        _CREATE_RULESET,
        ctypes.byref(attributes),
        ctypes.c_size_t(size),
        ctypes.c_uint32(0),
    )
    for path in readable:
        _allow(ruleset, path, _READ)
    for path in writable:
        _allow(ruleset, path, rights)
    calls.syscall(
        "landlock_restrict_self", _RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)
    )
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not os.path.isdir(path):
        rights &= _OF_FILES | _WRITE_FILE | _TRUNCATE
    rule = _PathBeneath(rights, fd)
    calls.syscall(
        "landlock_add_rule",
        _ADD_RULE,
        ctypes.c_int(ruleset),
        ctypes.c_int(_RULE_PATH_BENEATH),
        ctypes.byref(rule),
        ctypes.c_uint32(0),
    )
    os.close(fd)
