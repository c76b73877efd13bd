"""Inputs tried one by one in a child process, whose death, hanging or growth is an outcome.

An input follows from its number and the seed alone. The child writes down what it is about to read;
whatever ends it, the parent knows the input, keeps its files, and starts another child behind it.
"""

from __future__ import annotations

import faulthandler
import os
import random
import resource
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.fuzz.mutations import mutate
from benchmarks.fuzz.target import Target
from diablo_ds.errors import UserError

MAX_CPU_S = 120
"""Processor time for one input, whatever else the machine does."""
MAX_GROWTH_BYTES = 3 << 29
"""Resident memory above that before an input."""
_MAX_WAIT_S = 1800
_LIMIT_BYTES = 8 << 30
"""Address space above that at the start; a reader that asks for more is stopped here."""
_MAX_KEPT = 20
GOOD, REFUSED = "read", "refused"
TRACEBACK, CRASH, ENDLESS, MEMORY = "traceback", "crash", "endless", "memory"


@dataclass
class Outcomes:
    """What came of the inputs of one target."""

    counts: Counter[str] = field(default_factory=Counter)
    peak_bytes: int = 0
    """Largest growth of the resident memory over an input."""
    problems: list[str] = field(default_factory=list)

    @property
    def num_inputs(self) -> int:
        """Inputs that were tried."""
        return sum(self.counts.values())

    @property
    def num_bad(self) -> int:
        """Inputs that ended otherwise than in a result or an error for the user."""
        return self.num_inputs - self.counts[GOOD] - self.counts[REFUSED]


def fuzz(
    targets: Sequence[Target],
    folder: Path,
    *,
    seed: int,
    inputs: int | None = None,
    seconds: float = 0.0,
    told: Callable[[Mapping[str, Outcomes], float], object] = lambda outcomes, left_s: None,
    keep: Path | None = None,
) -> dict[str, Outcomes]:
    """Try inputs on all targets in turn, the ones made by hand first.

    Args:
        targets: the readers.
        folder: an empty one, to write inputs in.
        seed: what all random inputs follow from.
        inputs: how many random ones; by default as many as fit.
        seconds: time for them, after those made by hand.
        told: gets the outcomes so far and the seconds that are left of that time, after each input.
        keep: where the files of bad inputs are kept; nowhere by default.
    """
    by_hand = [(t, number) for t, target in enumerate(targets) for number in _hand(target)]
    outcomes = {target.name: Outcomes() for target in targets}
    session = _Session(targets, by_hand, seed, folder, keep)
    number = 0
    while number < len(by_hand):
        number = _one_child(
            session, number, len(by_hand), None, outcomes, lambda: told(outcomes, seconds)
        )
    last = None if inputs is None else len(by_hand) + inputs
    deadline = time.monotonic() + seconds if last is None else None

    def tell() -> None:
        told(outcomes, max(0.0, deadline - time.monotonic()) if deadline else 0.0)

    while not _is_over(number, last, deadline):
        number = _one_child(session, number, last, deadline, outcomes, tell)
    return outcomes


def _is_over(number: int, last: int | None, deadline: float | None) -> bool:
    if last is not None:
        return number >= last
    return deadline is not None and time.monotonic() >= deadline


def _hand(target: Target) -> Iterator[tuple[str, int]]:
    for name, contents in target.hostile.items():
        for number in range(len(contents)):
            yield name, number


@dataclass(frozen=True)
class _Session:
    targets: Sequence[Target]
    by_hand: Sequence[tuple[int, tuple[str, int]]]
    seed: int
    folder: Path
    keep: Path | None

    def input(self, number: int) -> tuple[Target, str, bytes]:
        """Return target, file and content of an input."""
        if number < len(self.by_hand):
            index, (name, chosen) = self.by_hand[number]
            target = self.targets[index]
            return target, name, target.hostile[name][chosen]
        dice = random.Random(f"{self.seed} {number}")
        target = self.targets[number % len(self.targets)]
        name = dice.choice(target.fuzzed)
        return target, name, mutate(target.files[name], dice)

    def write(self, folder: Path, target: Target, name: str, content: bytes) -> Path:
        """Write an input's files, each reader's into a folder of its own, and return it."""
        place = folder / target.name.replace(" ", "-").replace("'", "")
        if not place.exists():
            for file, valid in target.files.items():
                (place / file).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                _replace(place / file, valid)
        _replace(place / name, content)
        return place


def _replace(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # an earlier one may still be mapped
    path.write_bytes(content)
    path.chmod(0o600)


def _one_child(
    session: _Session,
    first: int,
    last: int | None,
    deadline: float | None,
    outcomes: dict[str, Outcomes],
    tell: Callable[[], object],
) -> int:
    """Let a child try inputs from ``first`` on, and return the number behind the last one."""
    context = get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(session, first, last, deadline, theirs))
    child.start()
    theirs.close()
    number, current = first, None
    while True:
        if not ours.poll(_MAX_WAIT_S):  # it waits for something, which takes no processor time
            child.kill()
        try:
            kind, *values = ours.recv()
        except EOFError:
            break
        if kind == "begin":
            (current,) = values
            continue
        target, outcome, growth, problem = values
        _count(outcomes[target], outcome, growth, problem, session, current)
        number, current = number + 1, None
        tell()
    child.join()
    ours.close()
    if current is not None:
        target_, _, _ = session.input(current)
        code = child.exitcode or 0
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        kind = ENDLESS if -code == signal.SIGPROF else CRASH
        _count(outcomes[target_.name], kind, 0, f"{kind}: {name}", session, current)
        number += 1
    return number


def _count(
    outcome: Outcomes, kind: str, growth: int, problem: str, session: _Session, number: int | None
) -> None:
    outcome.counts[kind] += 1
    outcome.peak_bytes = max(outcome.peak_bytes, growth)
    if kind in (GOOD, REFUSED) or number is None:
        return
    target, name, content = session.input(number)
    outcome.problems.append(f"input {number}, {name}: {problem}")
    if session.keep is not None and len(outcome.problems) <= _MAX_KEPT:
        kept = session.keep / f"{number}"
        shutil.rmtree(kept, ignore_errors=True)
        session.write(kept, target, name, content)


def _child(
    session: _Session, first: int, last: int | None, deadline: float | None, pipe: Connection
) -> None:
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + _LIMIT_BYTES, hard))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    # What libraries write, such as of names that they do not know, would bury the outcomes.
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    number = first
    while not _is_over(number, last, deadline):
        pipe.send(("begin", number))
        pipe.send(("end", *_try(session, number)))
        number += 1
    pipe.close()
    os._exit(0)


def _try(session: _Session, number: int) -> tuple[str, str, int, str]:
    """Return an input's target, its outcome, the memory it took, and what went wrong."""
    target, name, content = session.input(number)
    place = session.write(session.folder, target, name, content)
    signal.setitimer(signal.ITIMER_PROF, MAX_CPU_S)
    before = _forget_peak()
    outcome, problem = _read(target.read, place)
    growth = max(0, _status("VmHWM") - before)
    signal.setitimer(signal.ITIMER_PROF, 0)
    _replace(place / name, target.files[name])
    if outcome in (GOOD, REFUSED) and growth > MAX_GROWTH_BYTES:
        outcome, problem = MEMORY, f"{growth:,} bytes for {len(content):,} bytes of input"
    return target.name, outcome, growth, problem


def _read(read: Callable[[Path], object], place: Path) -> tuple[str, str]:
    try:
        read(place)
    except (UserError, OSError) as error:
        return _check_text(str(error))
    except MemoryError as error:
        return MEMORY, f"MemoryError: {error}"
    except BaseException as error:  # a panic of a library in Rust is no Exception
        where = traceback.extract_tb(error.__traceback__)[-1]
        return TRACEBACK, (
            f"{type(error).__name__}: {error!s:.200} ({where.filename}, line {where.lineno})"
        )
    return GOOD, ""


def _check_text(text: str) -> tuple[str, str]:
    """Return what an error's text is: too long, or with control characters, it is a defect too."""
    if len(text) > 10_000:
        return TRACEBACK, f"an error of {len(text):,} characters: {text:.100}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return TRACEBACK, f"an error that cannot be shown: {error}"
    return REFUSED, ""


def _forget_peak() -> int:
    """Forget the peak of the resident memory, and return what is resident now."""
    with Path("/proc/self/clear_refs").open("w") as file:
        file.write("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    """Return a size of this process in bytes, by its name in /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
