"""What goes wrong in monitoring is warned of, and the run goes on."""

from __future__ import annotations

import logging

import pytest

from diablo_ds.ranks.log import logger
from diablo_ds.training import profiling, tracking
from diablo_ds.training.history import History
from diablo_ds.training.metrics import plot_losses
from diablo_ds.training.tracking import Tracking
from diablo_ds.zero.block_norms import DeltaNorm


class _Told:
    """A tracker that keeps the names of what it was told."""

    name = "told"

    def __init__(self):
        self.calls = []

    def __getattr__(self, call):
        return lambda *args, **kwargs: self.calls.append(call)


@pytest.fixture
def warnings(monkeypatch, caplog):
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.WARNING, logger.name)
    return caplog


def _fail(*args, **kwargs):
    raise RuntimeError("broken")


def test_a_trace_that_cannot_begin_leaves_the_steps(tmp_path, monkeypatch, warnings):
    monkeypatch.setattr(profiling, "profile", _fail)
    trace = profiling.StepTrace("1-2", tmp_path)
    taken = []
    for step in (1, 2, 3):
        with trace.step(step):
            taken.append(step)
    trace.close()
    assert taken == [1, 2, 3]
    assert warnings.text.count("No trace of the profiled steps: RuntimeError: broken") == 1


def test_a_picture_that_cannot_be_drawn_takes_no_tracker_away(monkeypatch, warnings):
    told = _Told()
    tracked = Tracking([told])
    monkeypatch.setattr(tracking.HeatMap, "png", _fail)
    tracked.delta_norms(1, {"layers.0.a.delta": DeltaNorm(1.0, 2.0)}, singly=True)
    assert told.calls == ["histogram", "scalars"]
    assert "No picture of the deltas' norms: RuntimeError: broken" in warnings.text


def test_a_loss_curve_that_cannot_be_drawn_does_not_keep_the_adapter_back(tmp_path, warnings):
    history = History()
    history.add({"step": 1, "loss": 1.0})
    plot_losses(history, tmp_path / "no folder" / "loss.png")
    assert "loss.png is not drawn: " in warnings.text
