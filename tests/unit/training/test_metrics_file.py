from __future__ import annotations

import math

from diablo_ds.training.metrics_file import RecentPoints, each_point, format_point, read_metrics

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
    assert [point["step"] for point in each_point(path)] == [1, 2]
    assert read_metrics(tmp_path / "none") == ([], 0)


def test_a_point_is_a_line_in_which_only_finite_numbers_stand(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(format_point({"step": 3, "loss": math.nan}))
    assert path.read_text() == '{"step": 3, "loss": null}\n'
    assert math.isnan(read_metrics(path)[0][0]["loss"])


def test_a_file_is_read_on_from_where_it_was_read_before(tmp_path):
    path = tmp_path / "metrics.jsonl"
    recent = RecentPoints(path)
    assert recent.read() == []
    points = []
    for step in range(1, 1001):
        points.append({"step": step, "loss": 1.0, "step_s": 2.0})
        if step % 100 == 0:
            points.append({"step": step, "heldout_loss": 1.0})
            points.append({"step": step, "loss": 1.0, "evaluation_s": 3.0})
    lines = list(map(format_point, points))
    for start, stop in ((0, 10), (10, 990), (990, len(lines))):
        with path.open("a") as file:
            file.write("".join(lines[start:stop]) + lines[0][:7])
        found = recent.read()
        told = [point for point in points[:stop] if "step_s" not in point]
        assert found[-min(stop, 200) :] == points[max(0, stop - 200) : stop]
        assert [point for point in found if "step_s" not in point] == told
        assert len(found) < 450
        path.write_bytes(path.read_bytes()[:-7])  # the line is written to its end now
    for last in (300, 500, 1000):  # where a killed run continues, how far it came after that
        before = [point for point in points if point["step"] <= last]
        found = RecentPoints(path, last).read()
        assert found[-200:] == before[-200:]
        assert found == [point for point in before if point in found]
    again = tmp_path / "again"
    again.write_text(lines[0])
    again.replace(path)  # a run that continues from an earlier step
    assert recent.read() == points[:1]
