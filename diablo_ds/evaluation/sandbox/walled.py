"""Starts a walled process, and ends it with all its descendants."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diablo_ds
from diablo_ds.evaluation.sandbox.program import Limits

_START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from diablo_ds.evaluation.sandbox.inside import main; main()"
)
_IMPORTED_FROM = Path(diablo_ds.__file__).parents[1]
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_SYSTEM = (
    "/usr/lib",
    "/usr/lib64",
    "/lib",
    "/lib64",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
    "/etc/localtime",
)


def _packages() -> list[str]:
    """Return the folders of installed packages, also those that an environment takes from others:
    the system's, or the user's own."""
    paths = sysconfig.get_paths()
    found = (p for p in sys.path if os.path.basename(p) in ("site-packages", "dist-packages"))
    return list(dict.fromkeys((paths["purelib"], paths["platlib"], *found)))


def readable() -> list[str]:
    """Return what Python itself needs: its library, installed packages, and the system's."""
    of_python = sysconfig.get_path("stdlib"), f"{sys.base_prefix}/lib", f"{sys.base_prefix}/lib64"
    paths = [p for p in (*of_python, *_packages(), *_SYSTEM) if os.path.exists(p)]
    return [p for p in dict.fromkeys(paths) if not any(p.startswith(f"{o}/") for o in paths)]


def start(
    role: str,
    folder: Path,
    fds: Sequence[int],
    walls: Sequence[str],
    limits: Limits,
    *,
    stdin: Any = subprocess.DEVNULL,
    **more: Any,
) -> subprocess.Popen[bytes]:
    """Start a process that closes walls and then does its work, in a session of its own.

    Args:
        role: "solver", "checker" or "trial".
        folder: its empty folder, the only one that it may write to.
        fds: pipes that it is given.
        walls: names of the walls.
        limits: what it may use.
        stdin: as for `subprocess.Popen`.
        more: further settings of its role.
    """
    settings = {
        "role": role,
        "folder": str(folder),
        "fds": [*fds],
        "walls": [*walls],
        "readable": readable(),
        "packages": _packages(),
        "cpu_s": limits.cpu_s,
        "memory_bytes": limits.memory_bytes,
        "num_processes": limits.num_processes,
        "file_bytes": limits.file_bytes,
        **more,
    }
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _START, str(_IMPORTED_FROM), json.dumps(settings)],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=fds,
        start_new_session=True,
        env=_ENVIRONMENT,
        cwd="/",
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a walled process and whatever it started, and wait until all are gone.

    It takes in the orphans among its descendants, so it is killed last.
    """
    deadline = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < deadline:
        descendants = _descendants(process.pid)
        for pid in descendants:
            _kill(pid)
        if not descendants:
            break
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    """Return the descendants of a process, the nearest first."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):  # it ends meanwhile
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found[1:]
