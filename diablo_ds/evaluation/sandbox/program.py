"""A program with its tests, the limits that it runs under, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Program:
    """What a model wrote, and the tests that it has to pass."""

    source: str
    """The complete program. Nothing in it is trusted."""
    tests: str
    """Code that raises where the source is wrong; it calls the source's functions by name."""
    setup: str = ""
    """Code that runs ahead of the tests, such as the helper functions that a question gives."""
    entry_point: str = ""
    """A name that is taken from the source although the setup defines it too."""


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    cpu_s: int = 3
    """Seconds of computation, of the program and of its tests each."""
    wall_s: float = 15.0
    """Seconds after which it is ended whatever it does: sleep, or wait for a busy machine."""
    memory_bytes: int = 1 << 30
    """Address space of each process."""
    num_processes: int = 8
    file_bytes: int = 8 << 20
    """Size of each file, and of all files together where the file system is a wall."""
    output_bytes: int = 1 << 20
    """Text that it prints."""


@dataclass(frozen=True)
class Outcome:
    """What came of a program."""

    passed: bool
    reason: str
    """Why it did not pass; empty if it did."""
    output: str = ""
    """The beginning of what it printed."""
