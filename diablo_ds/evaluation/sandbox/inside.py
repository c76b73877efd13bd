"""The first lines of each walled process: close the walls, then solve, check, or try the walls.

Started with ``python -I -S -c``, with one argument: the settings, as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any

from diablo_ds.evaluation.sandbox import (
    calls,
    checker,
    landlock,
    namespaces,
    solver,
    syscall_filter,
)

NO_WALL = 97
"""Exit code where a wall could not be closed."""


def main() -> None:
    """Run what the settings say."""
    settings = json.loads(sys.argv[1])
    sys.path[:] = [*sys.path[1:], *settings["packages"]]  # without this package's own
    sys.argv[:] = [""]
    library = syscall_filter.load_library() if "seccomp" in settings["walls"] else None
    calls.prctl(calls.PR_SET_PDEATHSIG, signal.SIGKILL)
    calls.prctl(calls.PR_SET_CHILD_SUBREAPER, 1)
    try:
        if "namespaces" in settings["walls"]:
            namespaces.leave()
            first = _fork(settings)
            if first == 0:
                namespaces.enter_root(
                    settings["folder"], settings["readable"], settings["file_bytes"]
                )
                _in_child(settings, library)
            _end_as(first)
        _in_child(settings, library)
    except OSError as error:
        os.write(2, f"{error}\n".encode())
        os._exit(NO_WALL)


def _in_child(settings: dict[str, Any], library: Any) -> None:
    """Do the work in one more process, whose orphans this one takes; never returns."""
    worker = _fork(settings)
    if worker == 0:
        os.chdir("/tmp" if "namespaces" in settings["walls"] else settings["folder"])
        _close_walls(settings, library)
        _work(settings)
        os._exit(0)
    _end_as(worker)


def _fork(settings: dict[str, Any]) -> int:
    """Fork; the parent keeps no end of a pipe, and the child ends with it."""
    child = os.fork()
    if child:
        for fd in settings["fds"]:
            os.close(fd)
    else:
        calls.prctl(calls.PR_SET_PDEATHSIG, signal.SIGKILL)
    return child


def _end_as(child: int) -> None:
    """Wait for a child, and for orphans meanwhile, and end with its exit code; never returns."""
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def _close_walls(settings: dict[str, Any], library: Any) -> None:
    walls = settings["walls"]
    if "namespaces" in walls:
        namespaces.become_nobody()
    limits = {
        resource.RLIMIT_AS: settings["memory_bytes"],
        resource.RLIMIT_CPU: settings["cpu_s"],
        resource.RLIMIT_FSIZE: settings["file_bytes"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: settings["num_processes"],
    }
    if "namespaces" not in walls:
        # Counted over all processes of the user, so only a limit on more than there are now.
        del limits[resource.RLIMIT_NPROC]
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))
    calls.prctl(calls.PR_SET_NO_NEW_PRIVS, 1)
    if "landlock" in walls:
        in_namespaces = "namespaces" in walls
        readable = ["/"] if in_namespaces else [*settings["readable"], *namespaces.DEVICES]
        writable = ["/tmp" if in_namespaces else settings["folder"], "/dev/null"]
        landlock.restrict(readable, writable)
    if library is not None:
        syscall_filter.close_calls(library)


def _work(settings: dict[str, Any]) -> None:
    if settings["role"] == "solver":
        solver.solve(*settings["fds"])
    elif settings["role"] == "checker":
        checker.check(*settings["fds"])
    else:
        _try_walls(settings)


def _try_walls(settings: dict[str, Any]) -> None:
    """Write which of the walls hold: those that keep the files and the network out."""
    held = {"files": True, "network": True}
    for path in (settings["secret"], f"{os.path.dirname(settings['secret'])}/new"):
        try:
            with open(path, "r" if path == settings["secret"] else "w"):
                held["files"] = False
        except OSError:
            pass
    held["network"] = not any(map(_reaches, ("tcp", "udp", "local"), [settings] * 3))
    os.write(settings["fds"][0], json.dumps(held).encode())


def _reaches(what: str, settings: dict[str, Any]) -> bool:
    """Return whether a socket outside is reached, on the network or in the file system."""
    import socket

    address = "127.0.0.1", settings["port"]
    try:
        if what == "local":
            folder, name = os.path.split(settings["local"])
            os.chdir(folder)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(name)
        elif what == "udp":
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"x", address)
        else:
            with socket.create_connection(address, timeout=2):
                pass
    except OSError:
        return False
    return True
