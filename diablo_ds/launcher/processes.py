"""What a guard asks the kernel about its rank, its launcher and the pipe between them.

Only the standard library is used here, as in everything that a guard imports.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
from pathlib import Path

from diablo_ds.files.process_status import process_status
from diablo_ds.launcher.devices import AGENT
from diablo_ds.ranks.exit_codes import EXIT_STOPPED, EXIT_USER_ERROR

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """In the rank, before it starts: have the kernel kill it when its guard dies."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def ancestors() -> tuple[int, int]:
    """Return the launcher of this process and, where that is DeepSpeed's, its own parent."""
    parent = os.getppid()
    try:
        command = Path(f"/proc/{parent}/cmdline").read_bytes()
        if AGENT not in command:
            return parent, 0
        return parent, process_status(parent).parent
    except OSError:
        return parent, 0


def reader_is_gone() -> bool:
    """Return whether standard output is a pipe that nobody reads any more."""
    poller = select.poll()
    try:
        poller.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poller.poll(0))
    except (OSError, ValueError):
        return False


def is_stopped(pid: int) -> bool:
    """Return whether a process is stopped, as by SIGSTOP or a debugger."""
    try:
        return process_status(pid).state in ("T", "t")
    except OSError:
        return False


def describe_exit(code: int) -> str:
    """Return what a return code of `subprocess` means, for people."""
    if code == 0:
        return "done"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    meanings = {EXIT_STOPPED: "stopped as asked", EXIT_USER_ERROR: "wrong input"}
    return f"exit code {code}" + (f", {meanings[code]}" if code in meanings else "")
