"""Whether the kernel killed a process for lack of memory: its log, and the counters of cgroups.

A killed process cannot tell why. The kernel's log can, where this user may read it; otherwise the
counters of the process's cgroup, or of the machine, before it started and after its end. Only the
standard library is used here: a guard lives beside every rank and has to stay small.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SYSTEM = Path("/")
KILLER = "by the kernel's out-of-memory killer"
_FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""Inode of the pid namespace that the kernel's log counts in (include/linux/proc_ns.h)."""
_KILLED = re.compile(r"Killed process (\d+) \(.*?\).*?anon-rss:(\d+)kB")
_LOG_RECORD = re.compile(r"(?:\d+,\d+,(?P<us>\d+),[^;]*;|<\d+>\[ *(?P<s>\d+\.\d+)\])")
_OCTAL = re.compile(r"\\([0-7]{3})")
_SYSLOG_READ_ALL = 3
_LOG_BYTES = 1 << 20
_CLOCK_SLACK_S = 5.0
"""The log's clock may run apart from the monotonic one by so much."""
_LATE_S = 0.5
"""How long after a kill its traces may appear."""
_UNLIMITED = 1 << 60
"""Limits from here on mean none: cgroups of version 1 have the largest page count there."""


@dataclass(frozen=True)
class KillCounter:
    """A number of the kernel's that grows with each process that it kills for lack of memory."""

    count: int
    what: str
    """The counter in words."""
    is_own: bool
    """Whether it counts the processes of this cgroup alone."""
    limit_bytes: int | None = None
    """Memory that the cgroup may take, where there is a limit."""


def read_counter(root: Path = SYSTEM) -> KillCounter | None:
    """Return the counter of this process's cgroup, else of the machine; None where none is known.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    with contextlib.suppress(OSError, ValueError):
        if found := _cgroup_counter(root):
            return found
    with contextlib.suppress(OSError, ValueError):
        count = _number(root / "proc/vmstat", "oom_kill")
        if count is not None:
            return KillCounter(count, "oom_kill in /proc/vmstat", is_own=False)
    return None


def explain_kill(pid: int, since: float, before: KillCounter | None, *, root: Path = SYSTEM) -> str:
    """Return why SIGKILL came, as far as it is known to be a lack of memory; empty where it is not.

    Waits a moment for traces that are not there yet.

    Args:
        pid: of the killed process.
        since: when it was started, by `time.monotonic`.
        before: the counter at that time.
        root: where ``proc``, ``sys`` and ``dev`` are.
    """
    deadline = time.monotonic() + _LATE_S
    while True:
        held = log_of_kill(pid, since, root=root)
        if held is not None:
            return f"{KILLER}, as its log says; it held {held / 1e9:.2f} GB"
        if text := count_of_kills(before, root=root):
            is_own = before is not None and before.is_own
            return f"{'most likely' if is_own else 'perhaps'} {KILLER}: {text}"
        if time.monotonic() > deadline:
            return ""
        time.sleep(0.1)


def count_of_kills(before: KillCounter | None, *, root: Path = SYSTEM) -> str:
    """Return in words how a counter grew; empty where it did not, or is not known."""
    after = None if before is None else read_counter(root)
    if before is None or after is None or after.what != before.what or after.count <= before.count:
        return ""
    limit = after.limit_bytes
    of_limit = "" if limit is None else f", with a limit of {limit / 1e9:.2f} GB"
    return f"{after.what} grew from {before.count} to {after.count}{of_limit}"


def log_of_kill(pid: int, since: float, *, root: Path = SYSTEM) -> int | None:
    """Return the bytes that a process held when the kernel's log says that it was killed.

    Args:
        pid: of the process.
        since: when it was started, by `time.monotonic`: numbers of processes are used again.
        root: where ``dev`` and ``proc`` are.

    Returns:
        None where the log does not say so, cannot be read, or numbers processes differently, as
        it does in a container.
    """
    if root == SYSTEM and not _is_in_first_pid_namespace():
        return None
    for seconds, line in _log_lines(root):
        match = _KILLED.search(line)
        if match and int(match[1]) == pid and seconds > since - _CLOCK_SLACK_S:
            return int(match[2]) * 1024
    return None


# --- the kernel's log ----------------------------------------------------------------------------


def _is_in_first_pid_namespace() -> bool:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino == _FIRST_PID_NAMESPACE
    except OSError:
        return False


def _log_lines(root: Path) -> Iterator[tuple[float, str]]:
    """Yield the lines of the kernel's log with their times in seconds; none without permission."""
    text = _read_kmsg(root / "dev/kmsg")
    if text is None:
        text = _read_syslog() if root == SYSTEM else ""
    for line in text.splitlines():
        if record := _LOG_RECORD.match(line):
            yield int(record["us"]) / 1e6 if record["us"] else float(record["s"]), line


def _read_kmsg(path: Path) -> str | None:
    """Return the log's records, one a line; None where they cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    parts = []
    try:
        while True:
            try:
                part = os.read(descriptor, 8192)  # one record; a shorter buffer is an error
            except BrokenPipeError:  # records were overwritten meanwhile
                continue
            if not part:
                break
            parts.append(part)
    except BlockingIOError:
        pass
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return b"".join(parts).decode(errors="replace")


def _read_syslog() -> str:
    """Return the log as `dmesg` gets it where there is no /dev/kmsg."""
    with contextlib.suppress(OSError, AttributeError):
        buffer = ctypes.create_string_buffer(_LOG_BYTES)
        size = ctypes.CDLL(None).klogctl(_SYSLOG_READ_ALL, buffer, _LOG_BYTES)
        return buffer.raw[: max(size, 0)].decode(errors="replace")
    return ""


# --- cgroups -------------------------------------------------------------------------------------


def _cgroup_counter(root: Path) -> KillCounter | None:
    paths = dict(_own_cgroups(root))
    if "memory" in paths:
        return _first_version(_folder(root, "cgroup", "memory", paths["memory"]))
    if "" in paths:
        return _second_version(_folder(root, "cgroup2", "", paths[""]))
    return None


def _first_version(folder: Path | None) -> KillCounter | None:
    if folder is None:
        return None
    limit = _limit(folder / "memory.limit_in_bytes")
    for file, name in (("memory.oom_control", "oom_kill"), ("memory.failcnt", "")):
        count = _number(folder / file, name)
        if count is not None:
            return KillCounter(
                count, f"{name} in {folder / file}".removeprefix(" in "), True, limit
            )
    return None


def _second_version(folder: Path | None) -> KillCounter | None:
    """Return the counter of the nearest cgroup that has one; it counts those below it too."""
    while folder is not None and folder.name != "cgroup":
        file = folder / "memory.events"
        if file.is_file():
            count = _number(file, "oom_kill")
            if count is None:
                return None
            limit = _limit(folder / "memory.max")
            return KillCounter(count, f"oom_kill in {file}", is_own=True, limit_bytes=limit)
        folder = folder.parent if folder.parent != folder else None
    return None


def _own_cgroups(root: Path) -> Iterator[tuple[str, str]]:
    """Yield controllers and paths of this process's cgroups; version 2 has no controller's name."""
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            yield controller, path


def _folder(root: Path, kind: str, controller: str, path: str) -> Path | None:
    """Return where a cgroup is mounted, as this process sees it."""
    for line in (root / "proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fields, (found, _, options) = before.split(), after.split(maxsplit=2)
        if found != kind or (controller and controller not in options.split(",")):
            continue
        top, mount = map(_unescaped, fields[3:5])
        # In a container a part of the hierarchy is mounted, and the path may begin above it.
        inside = (
            path[len(top.rstrip("/")) :] if f"{path}/".startswith(top.rstrip("/") + "/") else ""
        )
        folder = root / mount.lstrip("/") / inside.lstrip("/")
        return folder if folder.is_dir() else root / mount.lstrip("/")
    return None


def _unescaped(path: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), path)


def _number(file: Path, name: str) -> int | None:
    """Return a named number of a file, or its only one; None where it is not there."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.rpartition(" ")
        if key == name:
            return int(value)
    return None


def _limit(file: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        value = int(file.read_text())  # "max" is no number
        return value if value < _UNLIMITED else None
    return None
