from __future__ import annotations

import math
import sys

from diablo_ds.config.run import RunConfig
from diablo_ds.evaluation.statistics import Estimate, Interval
from diablo_ds.training.history import History
from diablo_ds.training.metrics import Reporter, plot_losses


def test_a_resumed_run_keeps_the_good_points(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": null}\ngarbage\n{"step": 2, "loss": 1.5}\n')
    reporter = Reporter(tmp_path, RunConfig(), num_steps=3, start_step=2)
    reporter.close()
    assert path.read_text() == '{"step": 1, "loss": null}\n{"step": 2, "loss": 1.5}\n'


def test_the_loss_curve_is_left_out_without_matplotlib(tmp_path, monkeypatch):
    history = History()
    history.add({"step": 1, "loss": 2.0})
    history.add({"step": 1, "heldout_loss": 1.5})
    plot_losses(history, tmp_path / "with.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    plot_losses(history, tmp_path / "without.png")
    assert [path.name for path in tmp_path.iterdir()] == ["with.png"]


def test_task_scores_are_recorded_and_found_by_their_step(tmp_path):
    scores = {
        "accuracy": Estimate(0.5, 8, Interval(0.2, 0.8)),
        "other": Estimate(math.inf, 8, Interval(0.0, math.inf)),
    }
    reporter = Reporter(tmp_path, RunConfig(), num_steps=3, start_step=0)
    reporter.task(2, "loss:a/b", scores, 1.0)
    reporter.close()
    again = Reporter(tmp_path, RunConfig(), num_steps=3, start_step=2)
    again.close()
    assert again.history.scored_tasks(2) == {"loss:a/b"}
    assert again.history.scored_tasks(0) == set()
    assert again.history.scores["loss:a/b/accuracy"] == 0.5
    earlier = Reporter(tmp_path, RunConfig(), num_steps=3, start_step=1)
    earlier.close()
    assert earlier.history.scored_tasks(2) == set()  # which has to be taken again
