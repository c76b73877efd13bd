"""The third wall: a seccomp filter, by pyseccomp, against calls that no answer needs."""

from __future__ import annotations

import errno
import os
from typing import Any

_DENIED = (
    "socket",  # pairs of connected ones remain
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "process_madvise",
    "kill",
    "tkill",
    "rt_sigqueueinfo",
    "rt_tgsigqueueinfo",
    "pidfd_open",
    "pidfd_getfd",
    "pidfd_send_signal",
    "setpriority",
    "ioprio_set",
    "sched_setaffinity",
    "sched_setattr",
    "sched_setparam",
    "sched_setscheduler",
    "shmctl",
    "semctl",
    "msgctl",
    "mq_open",
    "mq_unlink",
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
    """Deny this process and its children, for good, sockets, signals, foreign memory and mounts.

    What acts on other processes is denied, as those of the same user could be reached otherwise.
    """
    denied = library.ERRNO(errno.EPERM)
    rules = library.SyscallFilter(defaction=library.ALLOW)
    for name in _DENIED:
        rules.add_rule(denied, name)
    rules.add_rule(denied, "tgkill", library.Arg(0, library.NE, os.getpid()))
    rules.add_rule(denied, "prlimit64", library.Arg(0, library.NE, 0))
    rules.load()
