"""Whether two mathematical answers are equal, by math-verify in a process of its own.

math-verify parses what a model wrote and simplifies it symbolically, which may take any time and
memory. Its own time limit needs the main thread and does not interrupt arithmetic on huge numbers.
"""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import resource
import signal
import threading
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import NamedTuple

from diablo_ds.errors import UserError
from diablo_ds.files.safe_python import safe_children

LIMIT_S = 30.0
"""Time for one comparison; after it the answers count as different."""
_START_S = 300.0
"""Time for the start of the process, which imports sympy."""
_MEMORY_BYTES = 4 << 30


class Comparison(NamedTuple):
    """What was found in an answer."""

    extracted: str | None
    is_equal: bool


def check_installed() -> None:
    """Raise UserError unless math-verify is installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise UserError(
            "task math needs the package math-verify; got none; install it: "
            "pip install 'diablo-ds[eval]'"
        )


def compare(reference: str, answer: str) -> Comparison:
    """Return what math-verify extracts from an answer, and whether it equals the reference.

    Args:
        reference: with LaTeX in a box.
        answer: text, perhaps with LaTeX.
    """
    with _lock:
        process, connection = _running()
        try:
            connection.send((reference, answer))
            if connection.poll(LIMIT_S):
                extracted, is_equal = connection.recv()
                return Comparison(extracted, is_equal)
        except (EOFError, OSError):  # it ended, perhaps killed for its memory
            pass
        _stop(process, connection)
        return Comparison(None, False)


_lock = threading.Lock()
_worker: tuple[SpawnProcess, Connection] | None = None


def _running() -> tuple[SpawnProcess, Connection]:
    """Return the process and the connection to it; start it if there is none."""
    global _worker
    if _worker is not None and _worker[0].is_alive() and not _worker[1].closed:
        return _worker
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    with safe_children():
        process.start()
    theirs.close()
    try:
        is_started = ours.poll(_START_S) and ours.recv()
    except EOFError:
        is_started = False
    if not is_started:
        _stop(process, ours)
        raise OSError("the process that compares answers of the task math must start; it ended")
    _worker = process, ours
    return _worker


def _stop(process: SpawnProcess, connection: Connection) -> None:
    process.kill()
    process.join()
    connection.close()


def _serve(connection: Connection) -> None:
    """Answer comparisons until the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Control-C is for the parent
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    logging.disable()
    from math_verify import parse, verify

    connection.send(True)
    while True:
        try:
            reference, answer = connection.recv()
        except EOFError:
            return
        extracted, is_equal = None, False
        try:
            found = parse(answer)
            extracted = str(found[-1]) if found else None
            is_equal = bool(verify(parse(reference), found))
        except Exception:  # sympy raises any kind, MemoryError included
            is_equal = False
        connection.send((extracted, is_equal))
