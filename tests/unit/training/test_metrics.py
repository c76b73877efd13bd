from __future__ import annotations

import sys

from diablo_ds.config.run import RunConfig
from diablo_ds.training.metrics import Reporter, plot_losses


def test_a_resumed_run_keeps_the_good_points(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": null}\ngarbage\n{"step": 2, "loss": 1.5}\n')
    reporter = Reporter(tmp_path, RunConfig(), num_steps=3, start_step=2)
    reporter.close()
    assert path.read_text() == '{"step": 1, "loss": null}\n{"step": 2, "loss": 1.5}\n'


def test_the_loss_curve_is_left_out_without_matplotlib(tmp_path, monkeypatch):
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}]
    plot_losses(history, tmp_path / "with.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    plot_losses(history, tmp_path / "without.png")
    assert [path.name for path in tmp_path.iterdir()] == ["with.png"]
