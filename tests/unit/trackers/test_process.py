"""What a tracker's process does wrong never reaches the run: it is warned of once."""

from __future__ import annotations

import time

import pytest

from diablo_ds.trackers import process
from diablo_ds.trackers.process import TrackerProcess
from tests.waiting import wait_until

HANGS = "import time\nprint('waiting')\ntime.sleep(3600)\n"
FAILS = (
    "import os, sys\nsys.stdin.readline()\nsys.exit('no way in with ' + os.environ['A_TOKEN'])\n"
)
READS = "import sys\nopen('got', 'wb').write(sys.stdin.buffer.read())\n"


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a tracker whose process is a program, and return it with what it warns of."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("A_TOKEN", "very-secret-token")
    warnings: list[str] = []
    monkeypatch.setattr(process.logger, "warning", warnings.append)

    def start(program: str, close_s: float) -> tuple[TrackerProcess, list[str]]:
        (tmp_path / "program.py").write_text(program)
        folder = tmp_path / "run" / "wandb"
        return TrackerProcess("wandb", folder, "mine", close_s=close_s, module="program"), warnings

    return start


def test_lines_come_in_order_and_all_of_them(start, tmp_path):
    tracker, warnings = start(READS, 600.0)
    for step in range(3):
        tracker.scalars(step, {"loss": float("inf")})
    tracker.close()
    assert (tmp_path / "run" / "wandb" / "got").read_text().splitlines() == [
        f'{{"call": "scalars", "step": {step}, "values": {{"loss": Infinity}}}}'
        for step in range(3)
    ]
    assert not warnings


def test_one_that_hangs_holds_up_nothing_and_is_ended(start, monkeypatch):
    monkeypatch.setattr(process, "_MOST_WAITING", 20)
    tracker, warnings = start(HANGS, 0.1)
    text = "x" * (1 << 20)  # more than a pipe holds
    for step in range(100):
        tracker.text(step, "text", text)  # would wait for an hour if it waited
    assert len(warnings) == 1
    assert "does not keep up" in warnings[0]
    tracker.close()
    assert tracker._process.returncode == -9
    assert len(warnings) == 1


def test_one_that_fails_is_warned_of_once_without_secrets(start):
    tracker, warnings = start(FAILS, 600.0)
    tracker.scalars(1, {"loss": 1.0})
    tracker._process.wait()

    def report() -> bool:
        tracker.scalars(2, {"loss": 1.0})
        time.sleep(0.01)
        return bool(warnings)

    wait_until(report, "a warning")
    tracker.close()
    (warning,) = warnings
    assert "Weights & Biases has ended early: no way in with ***; the run goes on" in warning
