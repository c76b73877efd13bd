"""Stop requests: a signal ends a run at the next border of a micro batch, on all ranks together.

Weights change in the update alone, so a step can be left at any border: its gradients are dropped,
and the last finished step is what the run goes on from.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

import torch

from diablo_ds.ranks import distributed
from diablo_ds.ranks.heartbeat import DESCRIPTOR
from diablo_ds.ranks.log import logger
from diablo_ds.ranks.records import STOP_GRACE_S, WARNING_VARIABLE

T = TypeVar("T")
ASK_EVERY_S = 1.0
"""About how often the ranks ask each other whether one of them was told to stop."""
MOST_BORDERS = 10
"""Borders after which they ask in any case, should micro batches have become slower."""


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """The run was asked to stop; what it has finished is saved, to go on from."""


class StopAgreed(Exception):  # noqa: N818 - nothing went wrong
    """All ranks know at the same border that one of them was told to stop."""


class StopRequests:
    """Remembers that this process was asked to stop.

    SIGUSR1, SLURM's warning ahead of a limit, counts from the start; SIGTERM and control-C only
    once there is training to save: before that they end the process at once.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        """Begin to listen."""
        self._set_handler(signal.SIGUSR1)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the signals to whom they belonged."""
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def start_training(self) -> None:
        """Let SIGTERM and control-C wait for a border too; a second control-C does not."""
        self._set_handler(signal.SIGTERM)
        self._set_handler(signal.SIGINT)

    def _set_handler(self, number: signal.Signals) -> None:
        self._old[number] = signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class GraceWarning:
    """Says, once, that stopping takes longer than is granted between a request and the kill."""

    def __init__(self) -> None:
        self.saving_s = 0.0
        """How long the last checkpoint took to write."""
        self._is_said = False

    def check(self, micro_batch_s: float) -> None:
        """Compare the time of a micro batch and of a save with each time that is granted."""
        needed_s = micro_batch_s + self.saving_s
        if self._is_said:
            return
        short = [f"{grace:g} s {where}" for grace, where in granted() if needed_s > grace]
        if short:
            self._is_said = True
            saving = f" and a save {self.saving_s:.1f} s" if self.saving_s else ""
            logger.warning(
                f"A stop request waits for the end of a micro batch; one takes "
                f"{micro_batch_s:.1f} s{saving}, but ranks are killed {' and '.join(short)}: "
                "what was done since the last checkpoint would be lost; use a smaller micro_batch "
                "or a smaller save_every"
            )


def granted() -> list[tuple[float, str]]:
    """Return the times between a request to stop and the kill, in seconds, with their cause."""
    times = []
    if DESCRIPTOR in os.environ:
        times.append((STOP_GRACE_S, "after SIGTERM or control-C"))
    if warning := os.environ.get(WARNING_VARIABLE):
        times.append((float(warning), "after SLURM's warning"))
    return times


class Borders:
    """The borders between micro batches of one kind of work, training or evaluation.

    Asking is a small collective that waits for all ranks and, on a GPU, for the device; so it is
    done about every `ASK_EVERY_S` seconds. When, is counted in borders, from the time per micro
    batch of the slowest rank, which the ranks exchange with the answer: all ask at the same one.

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
        self._requests, self._device = requests, device
        self._warning, self._clock = warning, clock
        self._num_timed = 0
        self._own_seconds = 0.0
        self._until_ask = 1

    def between(self, micro_batches: Iterable[T]) -> Iterator[T]:
        """Yield micro batches, and cross a border ahead of each.

        Collective: every rank must go through equally many.

        Raises:
            StopAgreed: on all ranks at the same border, soon after one of them was asked.
        """
        since, num_passed = self._clock(), 0
        for batch in micro_batches:
            self._until_ask -= 1
            if self._until_ask <= 0:
                self._take_time(since, num_passed)
                self._ask()
                since, num_passed = self._clock(), 0
            yield batch
            num_passed += 1
        self._take_time(since, num_passed)

    def _take_time(self, since: float, num_passed: int) -> None:
        if num_passed:
            self._own_seconds = (self._clock() - since) / num_passed
            self._num_timed += 1

    def _ask(self) -> None:
        mine = [float(bool(self._requests.signal_name)), self._own_seconds]
        rows = distributed.gather_floats(mine, self._device)
        self.seconds = max(row[1] for row in rows)
        self._until_ask = 1
        if self.seconds:
            self._until_ask = min(MOST_BORDERS, max(1, int(ASK_EVERY_S / self.seconds)))
        if self._warning is not None and self._num_timed > 1:  # the first one warms up
            self._warning.check(self.seconds)
        if any(row[0] for row in rows):
            raise StopAgreed
