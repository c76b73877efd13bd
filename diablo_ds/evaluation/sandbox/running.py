"""Runs programs against their tests, several at once."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from diablo_ds.evaluation.sandbox import walled
from diablo_ds.evaluation.sandbox.inside import NO_WALL
from diablo_ds.evaluation.sandbox.program import Limits, Outcome, Program
from diablo_ds.evaluation.sandbox.walls import Walls

_SHOWN = 2000
"""Characters of a program's output that are kept."""


def check_programs(
    programs: Iterable[Program],
    walls: Walls,
    limits: Limits,
    *,
    num_workers: int = 0,
    on_outcome: Callable[[Outcome], object] = lambda outcome: None,
) -> list[Outcome]:
    """Return what came of programs, in their order.

    Args:
        programs: with their tests.
        walls: those that stand.
        limits: of each program.
        num_workers: how many run at once; 0 for one a CPU.
        on_outcome: called with each as it is known, in order.

    Raises:
        OSError: if a process cannot be started, or a wall that stood cannot be closed.
    """
    outcomes = []
    with ThreadPoolExecutor(num_workers or len(os.sched_getaffinity(0))) as pool:
        for outcome in pool.map(lambda program: check_program(program, walls, limits), programs):
            outcomes.append(outcome)
            on_outcome(outcome)
    return outcomes


def check_program(program: Program, walls: Walls, limits: Limits) -> Outcome:
    """Run one program against its tests, both behind walls.

    Raises:
        OSError: if a process cannot be started, or a wall that stood cannot be closed.
    """
    prefix = f"diablo-program-{os.getpid()}-"
    with (
        tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder,
        contextlib.ExitStack() as stack,
    ):
        return _run(program, walls, limits, Path(folder), stack)


def _run(
    program: Program, walls: Walls, limits: Limits, folder: Path, stack: contextlib.ExitStack
) -> Outcome:
    spec = folder / "tests.json"
    spec.write_text(json.dumps(vars(program)))
    folders = [folder / role for role in ("solver", "checker")]
    for own in folders:
        own.mkdir()
    request, answer, verdict = os.pipe(), os.pipe(), os.pipe()
    verdict_file = stack.enter_context(os.fdopen(verdict[0], "rb", buffering=0))
    given = [request[0], answer[1]], [answer[0], request[1], verdict[1]]
    try:
        solver = walled.start("solver", folders[0], given[0], walls.names, limits)
        stack.callback(walled.end, solver)
        with spec.open("rb") as stdin:
            checker = walled.start(
                "checker", folders[1], given[1], walls.names, limits, stdin=stdin
            )
        stack.callback(walled.end, checker)
    finally:
        for fd in (*given[0], *given[1]):
            os.close(fd)
    reason, said = _wait(solver, checker, verdict_file, limits)
    output = said.decode(errors="replace")[:_SHOWN]
    if reason is None:
        return Outcome(True, "", output)
    ended = _exit_code(solver) if "ended before" in reason or not reason else None
    if NO_WALL in (ended, _exit_code(checker)):
        raise OSError(f"a wall that stood cannot be closed any more: {output}")
    if ended is not None:
        reason = f"{reason or 'the tests ended without a verdict'} ({_describe_end(ended, limits)})"
    return Outcome(False, reason, output)


def _wait(
    solver: subprocess.Popen[bytes],
    checker: subprocess.Popen[bytes],
    verdict_file: IO[bytes],
    limits: Limits,
) -> tuple[str | None, bytes]:
    """Wait for the verdict; return why the program did not pass, None if it did, and its output."""
    deadline = time.monotonic() + limits.wall_s
    verdict, said, num_said = b"", b"", 0
    with selectors.DefaultSelector() as selector:
        assert solver.stdout is not None
        assert checker.stdout is not None
        for file in (solver.stdout, checker.stdout, verdict_file):
            selector.register(file, selectors.EVENT_READ)
        while True:
            events = selector.select(max(0.0, deadline - time.monotonic()))
            for key, _ in events:
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fileobj)
                    if key.fileobj is verdict_file:
                        return _read_verdict(verdict), said
                elif key.fileobj is verdict_file:
                    verdict += data
                else:
                    num_said += len(data)
                    said += data[: max(0, 4 * _SHOWN - len(said))]
            if num_said > limits.output_bytes:
                return f"it printed more than {limits.output_bytes:,} bytes", said
            if time.monotonic() > deadline:
                return f"it took longer than {limits.wall_s:g} s", said


def _read_verdict(verdict: bytes) -> str | None:
    if not verdict:
        return ""
    reason: str = json.loads(verdict)["reason"]
    return reason or None


def _exit_code(process: subprocess.Popen[bytes]) -> int | None:
    """Return the exit code of a process that ends now; None where it goes on."""
    try:
        return process.wait(1.0)
    except subprocess.TimeoutExpired:
        return None


def _describe_end(code: int, limits: Limits) -> str:
    if code == 128 + signal.SIGXCPU or code == 128 + signal.SIGKILL:
        return f"killed, as at more than {limits.cpu_s} s of computation"
    if code > 128:
        return f"ended by {signal.Signals(code - 128).name}"
    return f"exit code {code}"
