from __future__ import annotations

from diablo_ds.config.run import RunConfig
from diablo_ds.training.metrics import Reporter


def test_a_resumed_run_keeps_the_good_points(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": null}\ngarbage\n{"step": 2, "loss": 1.5}\n')
    reporter = Reporter(tmp_path, RunConfig(), num_steps=3, start_step=2, enabled=True)
    reporter.close()
    assert path.read_text() == '{"step": 1, "loss": null}\n{"step": 2, "loss": 1.5}\n'
