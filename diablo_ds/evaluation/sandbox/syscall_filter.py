"""The third wall: a seccomp filter, by pyseccomp, against calls that no answer needs."""

from __future__ import annotations

import errno
import socket
from typing import Any

_DENIED = (
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "kill",
    "tkill",
    "pidfd_open",
    "pidfd_send_signal",
    "mount",
    "umount2",
    "pivot_root",
    "chroot",
    "unshare",
    "setns",
    "bpf",
    "perf_event_open",
    "add_key",
    "request_key",
    "keyctl",
    "io_uring_setup",
    "userfaultfd",
    "open_by_handle_at",
    "init_module",
    "finit_module",
    "kexec_load",
    "reboot",
)


def load_library() -> Any:
    """Import pyseccomp, and the C library that it calls.

    Raises:
        ImportError: if one of them is missing.
    """
    try:
        import pyseccomp
    except (OSError, RuntimeError) as error:
        raise ImportError(str(error)) from None
    return pyseccomp


def close_calls(library: Any) -> None:
    """Deny this process, for good, signals, foreign memory, mounts, and sockets but Unix ones."""
    denied = library.ERRNO(errno.EPERM)
    rules = library.SyscallFilter(defaction=library.ALLOW)
    for name in _DENIED:
        rules.add_rule(denied, name)
    rules.add_rule(denied, "socket", library.Arg(0, library.NE, socket.AF_UNIX))
    rules.load()
