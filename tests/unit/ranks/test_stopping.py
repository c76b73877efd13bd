"""Borders between micro batches: how often ranks ask, and what is said about slow ones."""

from __future__ import annotations

import logging

import pytest

from diablo_ds.ranks.records import STOP_GRACE_S, WARNING_VARIABLE
from diablo_ds.ranks.stopping import (
    DESCRIPTOR,
    MOST_BORDERS,
    Borders,
    GraceWarning,
    StopAgreed,
    StopRequests,
)


class _Work:
    """A process alone whose micro batches take a given time by its clock."""

    def __init__(self, seconds: float, warning: GraceWarning | None = None) -> None:
        self.now, self.seconds, self.num_asks = 0.0, seconds, 0
        self.requests = StopRequests()
        self.borders = Borders(self.requests, "cpu", warning=warning, clock=lambda: self.now)
        ask = self.borders._ask

        def counted() -> None:
            self.num_asks += 1
            ask()

        self.borders._ask = counted

    def do(self, num_batches: int, stop_at: int | None = None) -> int:
        """Work through some micro batches; return how many."""
        done = 0
        for number in self.borders.between(range(num_batches)):
            if number == stop_at:
                self.requests.signal_name = "SIGTERM"
            self.now += self.seconds
            done += 1
        return done


@pytest.mark.parametrize(("seconds", "asks"), [(30.0, 100), (0.26, 34), (0.001, 11)])
def test_ranks_ask_about_once_a_second(seconds, asks):
    work = _Work(seconds)
    assert work.do(100) == 100
    # The second border too, where the first time is known.
    assert work.num_asks == asks


def test_a_slow_micro_batch_is_the_last_one():
    work = _Work(30.0)
    with pytest.raises(StopAgreed):
        work.do(100, stop_at=5)
    assert work.now == 6 * 30.0


def test_borders_of_steps_count_like_those_inside():
    work = _Work(0.001)
    for _ in range(100):
        work.do(1)
    assert work.num_asks == 2 + 98 // MOST_BORDERS


def _warning(seconds: float, caplog: pytest.LogCaptureFixture, saving_s: float = 0.0) -> str:
    caplog.clear()
    warning = GraceWarning()
    warning.saving_s = saving_s
    work = _Work(seconds, warning)
    with caplog.at_level(logging.WARNING, "diablo_ds"):
        work.do(2)
        assert not caplog.messages  # only the first one is timed, which warms up
        work.do(20)
    assert len(caplog.messages) <= 1
    return "".join(caplog.messages)


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diablo_ds"), "propagate", True)
    return caplog


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
