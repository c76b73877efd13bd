"""Stop requests: a signal ends a run between two micro batches, on all ranks together.

Weights change in the update alone, so a step can be left at any micro-batch boundary: its gradients
are dropped, and the run continues from the last finished step.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, TypeVar

import torch

from diablo_ds.ranks import distributed
from diablo_ds.ranks.heartbeat import DESCRIPTOR
from diablo_ds.ranks.log import logger
from diablo_ds.ranks.records import STOP_GRACE_S, WARNING_VARIABLE

T = TypeVar("T")
ASK_EVERY_S = 1.0
"""About how often the ranks tell each other at least whether one of them was asked to stop."""


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """The run was asked to stop; the steps it has finished are saved."""


class StopAgreed(Exception):  # noqa: N818 - nothing went wrong
    """All ranks know at the same boundary that one of them was asked to stop."""


class StopRequests:
    """Remembers that this process was asked to stop.

    SIGUSR1, SLURM's warning ahead of a limit, counts from the start; SIGTERM and control-C only
    once there is training to save: before that they end the process at once. It must be entered
    before the first beat, on which a guard begins to forward SIGUSR1.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        """Start listening."""
        self._set_handler(signal.SIGUSR1)
        return self

    def __exit__(self, *_: object) -> None:
        """Put the previous signal handlers back."""
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def start_training(self) -> None:
        """Let SIGTERM and control-C wait for a boundary too; a second control-C does not."""
        self._set_handler(signal.SIGTERM)
        self._set_handler(signal.SIGINT)

    def _set_handler(self, number: signal.Signals) -> None:
        self._old[number] = signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class GraceWarning:
    """Warns, once, that stopping takes longer than the time between a request and the kill.

    It takes two micro batches in a row that are too slow: one may be slow because it is compiled.
    """

    def __init__(self) -> None:
        self.saving_s = 0.0
        """How long the last checkpoint took to write."""
        self._before_s = 0.0
        self._is_said = False

    def check(self, micro_batch_s: float) -> None:
        """Compare the time of a micro batch and a save with each grace period, all in seconds."""
        shorter_s, self._before_s = min(micro_batch_s, self._before_s), micro_batch_s
        needed_s = shorter_s + self.saving_s
        if self._is_said or not shorter_s:
            return
        short = [f"{grace:g} s {where}" for grace, where in granted() if needed_s > grace]
        if short:
            self._is_said = True
            saving = f" and a save {self.saving_s:.1f} s" if self.saving_s else ""
            logger.warning(
                f"A stop request waits for the end of a micro batch; one takes "
                f"{shorter_s:.1f} s{saving}, but ranks are killed {' and '.join(short)}: "
                "the steps since the last checkpoint would be lost; use a smaller micro_batch "
                "or a smaller save_every"
            )


def granted() -> list[tuple[float, str]]:
    """Return the times between a request to stop and the kill, in seconds, each with its cause."""
    times = []
    if DESCRIPTOR in os.environ:
        times.append((STOP_GRACE_S, "after SIGTERM or control-C"))
    if warning := os.environ.get(WARNING_VARIABLE):
        times.append((float(warning), "after SLURM's warning"))
    return times


class Boundaries:
    """The boundaries between micro batches of one kind of work, training or evaluation.

    The ranks tell one another of a request with the results of each step (`message`, `receive`),
    where they exchange numbers anyway. Only where the exchanges are more than about `ASK_EVERY_S`
    apart, in a long step or an evaluation, do they also ask between two micro batches: a small
    collective that waits for all ranks and, on a GPU, for the device. When they do is counted in
    micro batches, from the time that one takes on the slowest rank: all ask at the same boundary.

    Args:
        requests: what this process was asked.
        device: where the backend communicates.
        warning: told how long a micro batch takes.
        clock: returns seconds.
    """

    def __init__(
        self,
        requests: StopRequests,
        device: torch.device | str,
        *,
        warning: GraceWarning | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.seconds = 0.0
        """Time of a micro batch on the slowest rank; 0 while it is not known."""
        self.device = device
        self._requests = requests
        self._warning, self._clock = warning, clock
        self._own_seconds = 0.0
        self._num_timings = 0
        self._start, self._num_passed = 0.0, 0

    def message(self) -> list[float]:
        """Return what this rank tells the others: its request, and its time per micro batch."""
        return [float(bool(self._requests.signal_name)), self._own_seconds]

    def receive(self, messages: Sequence[Sequence[float]]) -> bool:
        """Take in the message of every rank, once the device has finished what came before.

        Returns:
            Whether to stop: the same on all ranks.
        """
        self.seconds = max(message[1] for message in messages)
        if self._warning is not None and self._num_timings > 1:  # the first one warms up
            self._warning.check(self.seconds)
        if self._num_passed:
            self._own_seconds = (self._clock() - self._start) / self._num_passed
            self._num_timings += 1
        self._start, self._num_passed = self._clock(), 0
        return any(message[0] for message in messages)

    def between(self, micro_batches: Iterable[T], *, ask_first: bool = False) -> Iterator[T]:
        """Yield micro batches; ask all ranks ahead of some of them.

        Collective: every rank must go through equally many.

        Args:
            micro_batches: what to yield.
            ask_first: whether to ask ahead of the first one, too.

        Raises:
            StopAgreed: on all ranks at the same boundary, soon after one of them was asked.
        """
        self._start, self._num_passed = self._clock(), 0
        until_ask = 0 if ask_first else self._interval()
        for batch in micro_batches:
            if until_ask == 0:
                if self.receive(distributed.gather_floats(self.message(), self.device)):
                    raise StopAgreed
                until_ask = self._interval()
            yield batch
            self._num_passed += 1
            until_ask -= 1

    def _interval(self) -> int:
        """Return the number of micro batches from one exchange to the next question."""
        return max(1, int(ASK_EVERY_S / self.seconds)) if self.seconds else 1
