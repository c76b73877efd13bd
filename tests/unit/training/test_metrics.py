from __future__ import annotations

import math

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import save_run_config
from diablo_ds.launcher.status import describe_status
from diablo_ds.training.metrics import Reporter, read_metrics, read_num_steps

GARBAGE = [
    *("garbage", "[1, 2]", "null", "7", '"step"', "{}", '{"loss": 1.0}', '{"step": "x"}'),
    *('{"step": -1}', '{"step": 1.5}', '{"step": null}', '{"step": 1, "loss": [1]}', "[" * 9999),
    *(f'{{"step": {10**400}}}', '{"step": 3, "loss'),
]


def test_lines_that_are_no_points_are_counted_and_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = ['{"step": 1, "loss": 2.5}', '{"step": 2, "loss": null}']
    path.write_bytes("\n".join([good[0], *GARBAGE, good[1]]).encode() + b"\n\xff\xfe")
    points, num_bad = read_metrics(path)
    assert points[0] == {"step": 1, "loss": 2.5}
    assert math.isnan(points[1]["loss"])
    assert (len(points), num_bad) == (2, len(GARBAGE) + 1)
    assert read_metrics(tmp_path / "none") == ([], 0)


def test_a_resumed_run_keeps_the_good_points(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": null}\ngarbage\n{"step": 2, "loss": 1.5}\n')
    reporter = Reporter(tmp_path, RunConfig(), num_steps=3, start_step=2, enabled=True)
    reporter.close()
    assert path.read_text() == '{"step": 1, "loss": null}\n{"step": 2, "loss": 1.5}\n'


@pytest.mark.parametrize("text", ["garbage", "[]", "{}", '{"num_steps": 0}', '{"num_steps": "x"}'])
def test_status_does_without_what_cannot_be_read(text, tmp_path):
    save_run_config(RunConfig(), tmp_path / "run.json")
    (tmp_path / "progress.json").write_text(text)
    assert read_num_steps(tmp_path / "progress.json") is None
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": null, "step_s": 1.0, "tokens_per_s": 1.0}\n{"step": 2, "loss": 1.0}\n'
    )
    text = describe_status(tmp_path)
    assert "step        1, written" in text
    assert "time left   unknown" in text
