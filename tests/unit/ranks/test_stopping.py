"""Boundaries between micro batches: when ranks ask, and what is said about slow micro batches."""

from __future__ import annotations

import logging

import pytest

from diablo_ds.ranks.records import STOP_GRACE_S, WARNING_VARIABLE
from diablo_ds.ranks.stopping import DESCRIPTOR, Boundaries, GraceWarning, StopAgreed, StopRequests


class _Work:
    """A process alone whose micro batches take a given time by its clock."""

    def __init__(self, seconds: float, warning: GraceWarning | None = None) -> None:
        self.now, self.seconds, self.num_asks = 0.0, seconds, 0
        self.requests = StopRequests()
        self.boundaries = Boundaries(self.requests, "cpu", warning=warning, clock=lambda: self.now)

    def step(self, num_batches: int, stop_at: int | None = None) -> bool:
        """Work through the micro batches of a step; return whether to stop after it."""
        receive, num_received = self.boundaries.receive, 0

        def counted(rows: list[list[float]]) -> bool:
            nonlocal num_received
            num_received += 1
            return receive(rows)

        self.boundaries.receive = counted
        try:
            for number in self.boundaries.between(range(num_batches)):
                if number == stop_at:
                    self.requests.signal_name = "SIGTERM"
                self.now += self.seconds
        finally:
            self.num_asks, self.boundaries.receive = num_received, receive
        return receive([self.boundaries.message()])


def _warm(seconds: float) -> _Work:
    """Work of which every rank knows how long a micro batch takes."""
    work = _Work(seconds)
    for _ in range(2):
        work.step(1)
    return work


@pytest.mark.parametrize(
    ("seconds", "num_batches", "num_asks"),
    [(0.001, 100, 0), (0.26, 3, 0), (0.26, 4, 1), (0.26, 100, 33), (30.0, 4, 3), (30.0, 1, 0)],
)
def test_ranks_ask_inside_steps_of_over_a_second_only(seconds, num_batches, num_asks):
    work = _warm(seconds)
    work.step(num_batches)
    assert work.num_asks == num_asks


def test_in_the_first_step_ranks_ask_at_each_boundary_until_they_know_the_time():
    work = _Work(0.001)
    work.step(8)
    # The first question is ahead of the second micro batch; the time is told with the second one.
    assert work.num_asks == 2


def test_a_slow_micro_batch_is_the_last_one():
    work = _warm(30.0)
    start = work.now
    with pytest.raises(StopAgreed):
        work.step(100, stop_at=5)
    assert work.now - start == 6 * 30.0


def test_a_request_in_a_short_step_is_told_with_its_results():
    work = _warm(0.001)
    assert not work.step(10)
    assert work.step(10, stop_at=5)


def test_an_evaluation_asks_ahead_of_its_first_micro_batch():
    work = _warm(0.001)
    work.requests.signal_name = "SIGUSR1"
    with pytest.raises(StopAgreed):
        next(iter(work.boundaries.between(range(10), ask_first=True)))


def _warning(seconds: float, caplog: pytest.LogCaptureFixture, saving_s: float = 0.0) -> str:
    caplog.clear()
    warning = GraceWarning()
    warning.saving_s = saving_s
    work = _Work(seconds, warning)
    with caplog.at_level(logging.WARNING, "diablo_ds"):
        work.step(2)
        assert not caplog.messages  # only the first one is timed, which warms up
        for _ in range(3):
            work.step(20)
    assert len(caplog.messages) <= 1
    return "".join(caplog.messages)


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diablo_ds"), "propagate", True)
    return caplog


def test_a_slow_micro_batch_between_quick_ones_is_no_reason_to_warn(log, monkeypatch):
    monkeypatch.setenv(DESCRIPTOR, "9")
    work = _Work(1.0, GraceWarning())
    with log.at_level(logging.WARNING, "diablo_ds"):
        for seconds in (70.0, 1.0, 70.0, 1.0, 1.0, 70.0, 70.0):
            work.seconds = seconds
            work.step(1)
        assert not log.messages  # a step's time is known to all in the one after it
        work.step(1)
    assert "one takes 70.0 s" in "".join(log.messages)


def test_a_micro_batch_longer_than_the_grace_is_named_with_both_numbers(log, monkeypatch):
    monkeypatch.setenv(DESCRIPTOR, "9")
    assert "one takes 40.0 s" in _warning(40.0, log)
    assert f"{STOP_GRACE_S:g} s after SIGTERM" in _warning(40.0, log)
    assert "SLURM" not in _warning(40.0, log)
    assert not _warning(5.0, log)
    assert "a save 21.0 s" in _warning(5.0, log, saving_s=21.0)
    monkeypatch.setenv(WARNING_VARIABLE, "30")
    assert "30 s after SLURM's warning" in _warning(40.0, log)
    monkeypatch.delenv(DESCRIPTOR)  # nothing kills a process without a guard
    assert "SIGTERM" not in _warning(40.0, log)
    monkeypatch.delenv(WARNING_VARIABLE)
    assert not _warning(40.0, log)
