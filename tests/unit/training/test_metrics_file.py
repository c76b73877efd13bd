from __future__ import annotations

import math

from diablo_ds.training.metrics_file import format_point, read_metrics

GARBAGE = [
    "garbage",
    "[1, 2]",
    "null",
    "7",
    '"step"',
    "{}",
    '{"loss": 1.0}',
    '{"step": "x"}',
    '{"step": -1}',
    '{"step": 1.5}',
    '{"step": null}',
    '{"step": 1, "loss": [1]}',
    "[" * 9999,
    f'{{"step": {10**400}}}',
    '{"step": 1, "step_s": -0.5}',
    '{"step": 1, "tokens_per_s": 1e300}',
    '{"step": 3, "loss',
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


def test_a_point_is_a_line_in_which_only_finite_numbers_stand(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(format_point({"step": 3, "loss": math.nan}))
    assert path.read_text() == '{"step": 3, "loss": null}\n'
    assert math.isnan(read_metrics(path)[0][0]["loss"])
