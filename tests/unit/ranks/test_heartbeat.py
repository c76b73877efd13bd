from __future__ import annotations

import os

import pytest

from diablo_ds.ranks.heartbeat import DESCRIPTOR, START_LIMIT_S, Heart


@pytest.fixture
def beats(monkeypatch):
    """Return what a guard has read since the last call."""
    source, end = os.pipe()
    os.set_blocking(source, False)
    monkeypatch.setenv(DESCRIPTOR, str(end))

    def read():
        try:
            return os.read(source, 1000).decode().splitlines()
        except BlockingIOError:
            return []

    yield read
    os.close(source)
    os.close(end)


def test_beats_tell_limit_phase_and_step_only_inside_the_block(beats):
    heart = Heart()
    heart.beat("before")
    assert beats() == []
    with heart.beating():
        assert beats() == []  # the first beat tells a guard that SIGUSR1 is handled
        heart.beat("loading")
        heart.limit_s, heart.step = 60.0, 3
        heart.beat("forward")
    assert beats() == [f"{START_LIMIT_S:g} loading", "60 forward of step 3", "0 forward of step 3"]
    heart.beat("after")
    assert beats() == []


def test_a_guard_that_is_gone_is_no_error(monkeypatch):
    source, end = os.pipe()
    os.close(source)
    monkeypatch.setenv(DESCRIPTOR, str(end))
    heart = Heart()
    with heart.beating():
        heart.beat("forward")
    os.close(end)
