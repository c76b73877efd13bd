"""The report as a browser shows it, and what strangers' files can do to it: nothing."""

from __future__ import annotations

import html
import json
import re

import pytest

from diablo_ds.errors import UserError
from diablo_ds.launcher.sweep_report import Result, write_sweep
from diablo_ds.ranks.records import RankRecord, write_record
from diablo_ds.reporting.report import write_report
from diablo_ds.reporting.svg import Line, line_chart
from diablo_ds.training.standing import DONE
from diablo_ds.zero.stages import STAGES
from tests.browser import needs_browser, page, printed
from tests.unit.reporting.runs import write_run

HOSTILE = "<script>document.title='taken'</script>\"'&<img src=x onerror=alert(1)>"


@pytest.fixture
def sweep(tmp_path):
    """A sweep of two runs; the first was started twice, and a rank failed in between."""
    folder = tmp_path / "runs" / "rates"
    results = []
    for rate in ("0.001", "0.1"):
        run = write_run(
            folder / f"rate={rate}", losses=(2.0, float(rate)), learning_rate=float(rate)
        )
        results.append(Result(run.name, {"rate": rate}, DONE))
    write_sweep(folder, "the command", results)
    run = folder / results[0].name
    record = json.loads((run / "run.json").read_text())
    start = {"world_size": 2, "hosts": [{"name": "node", "ranks": 2, "device": "cpu"}]}
    start |= {"ds_config": {"zero_optimization": {"stage": 3}}, "command": HOSTILE}
    start["plan"] = {"tokens_per_s": 50.0, "memory_bytes": 2e9}
    change = {"field": "learning_rate", "old": 1, "new": 2}
    record["starts"] = [start, start | {"start_step": 1, "changes": [change]}]
    (run / "run.json").write_text(json.dumps(record))
    logs = run / "logs" / "attempt-001"
    logs.mkdir(parents=True)
    write_record(logs, RankRecord(0, "node", 1, 1, 0.0, ended=1.0, exit_code=1, cause=HOSTILE))
    return folder


def _evaluation(folder, run):
    """Write an evaluation of a run's adapter that is done."""
    folder.mkdir()
    (folder / "evaluation.json").write_text(json.dumps({"models": {}, "tasks": {}, "format": 1}))
    score = {"model": HOSTILE, "task": "gsm8k", "metric": "accuracy", "score": 0.25, "n": 8}
    results = {"results": [score | {"interval": [0.1, 0.5]}], "comparisons": []}
    results["run"] = {"models": {HOSTILE: str(run / "adapter")}}
    (folder / "results.json").write_text(json.dumps(results))


def _report(folders, output):
    write_report(folders, output)
    return output.read_text()


def test_a_report_has_what_is_asked_of_it_and_nothing_of_strangers_as_markup(sweep, tmp_path):
    run = sweep / "rate=0.001"
    _evaluation(sweep / "scores", run)
    text = _report([run], tmp_path / "one.html")
    headings = re.findall("<h2>(.*)</h2>", text)
    assert headings == [
        "Results",
        "Curves",
        "What ran",
        "Placement",
        "Speed",
        "Starts, ends and faults",
        "Evaluation scores",
    ]
    assert text.count(html.escape(HOSTILE)) == 3  # the command, a rank's cause, a model's name
    assert "script" not in re.findall("<([a-z]+)", text)
    assert "img" not in re.findall("<([a-z]+)", text)
    planned = '<td class="number">100</td><td class="number">50</td><td class="number">2.00</td>'
    assert planned in text
    assert ">25.0</td>" in text
    assert "learning_rate: 1 -&gt; 2" in text
    assert f"stage 3: {STAGES[3]}; deltas on every rank" in text
    assert not re.search(r"https?:|src=\"|href=", text)


def test_several_runs_are_compared_and_a_sweep_has_its_response(sweep, tmp_path):
    other = write_run(tmp_path / "other", num_blocks="8", learning_rate=0.5)
    text = _report([sweep, other], tmp_path / "many.html")
    assert "<title>3 runs compared</title>" in text
    assert "<h2>Response of sweep rates</h2>" in text
    (row,) = re.findall("<tr><td>learning-rate</td>.*", text.replace("--learning", "learning"))
    assert re.findall("<td>(.*?)</td>", row)[1:] == ["0.001", "0.1", "0.5"]
    assert not re.search("<td>(--)?output</td>", text)


def test_scores_of_tasks_are_drawn_over_the_steps_after_the_losses(tmp_path):
    run = write_run(tmp_path / "run")
    points = [
        {"step": step, "task/gsm8k/accuracy": share, "task/loss:<b>/loss": 2.0, "task/gsm8k/n": 9}
        for step, share in ((0, 0.0), (2, 0.5))
    ]
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(point) + "\n" for point in points)
    text = _report([run, write_run(tmp_path / "other")], tmp_path / "report.html")
    titles = re.findall('class="title">(.*?)<', text)
    assert titles[2:4] == ["gsm8k: accuracy (%)", "loss:&lt;b&gt;: loss"]
    assert [title.split()[0] for title in titles[:2] + titles[4:]] == [
        "held-out",
        "training",
        "tokens/s,",
        "peak",
    ]
    shares = text.partition("gsm8k: accuracy (%)</text>")[2].partition("</svg>")[0]
    assert re.findall('class="end">(.*?)<', shares) == ["0", "10", "20", "30", "40", "50"]
    assert shares.count("<circle") == 2


def test_damaged_runs_are_told_and_what_is_no_run_is_refused(tmp_path):
    run = write_run(tmp_path / "a")
    (run / "metrics.jsonl").unlink()
    (run / "run.json").write_text("{")
    assert "file must be valid JSON" in _report([run], tmp_path / "report.html")
    with pytest.raises(UserError, match="must be the folder of a run or a sweep"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(UserError, match=r"must be an \.html file"):
        write_report([run], tmp_path / "report.pdf")
    with pytest.raises(UserError, match="must lie in a folder that exists"):
        write_report([run], tmp_path / "no" / "report.html")


def test_values_that_no_run_has_do_not_end_a_report(sweep, tmp_path):
    run = sweep / "rate=0.001"
    _evaluation(sweep / "scores", run)
    changed = json.loads((run / "run.json").read_text())
    start = changed["starts"][0]
    start |= {"date": "9999-12-31T23:59:59-12:00", "world_size": [], "plan": {"mfu": 10**300}}
    start["plan"] |= {"tokens_per_s": 10**300}
    start["ds_config"] = {"zero_optimization": {"stage": [3], "offload_param": {"device": {}}}}
    start["data"] = {"train": {"tokens": 10**300, "sequences": 1}}
    changed["starts"] = [start, start]
    (run / "run.json").write_text(json.dumps(changed))
    record = RankRecord(0, "node", 1, 1, 0.0, ended=1e308, exit_code=1)
    write_record(run / "logs" / "attempt-001", record)
    points = [{"step": n, "heldout_loss": v} for n, v in enumerate((1e308, -1e308, 5e-324))]
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(point) + "\n" for point in points)
    results = json.loads((sweep / "scores" / "results.json").read_text())
    results["results"][0]["n"] = "8"
    results["run"]["models"]["x"] = "a\0"
    (sweep / "scores" / "results.json").write_text(json.dumps(results))
    text = _report([sweep, sweep / "scores"], tmp_path / "report.html")
    assert "stage [3]: unknown" in text
    assert "must have results and comparisons as this program writes them" in text


@needs_browser
def test_a_browser_shows_and_prints_the_report(sweep, tmp_path):
    output = tmp_path / "report.html"
    write_report([sweep], output)
    shown = page(output)
    assert "<title>2 runs compared</title>" in shown
    curves = re.findall(r'<svg viewBox[^>]* aria-label="([^"]*)"', shown)
    assert curves[0] == "held-out loss (nats per target token)"
    assert len(re.findall("<polyline ", shown)) >= 2 * 4
    printed(output, tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("is_log", [False, True])
def test_a_chart_keeps_its_points_inside_and_in_order(is_log):
    points = [(1.0, 5.0), (10.0, -5.0), (100.0, 0.0)]
    chart = line_chart("t", "x", [Line(points), Line([(10.0, 1.0)])], is_log=is_log)
    (path,) = re.findall('polyline points="([^"]* [^"]*)"', chart)
    (x0, y0), (x1, y1), (x2, y2) = (map(float, pair.split(",")) for pair in path.split())
    assert 0 < x0 < x1 < x2 < 520
    assert 0 < y0 < y2 < y1 < 300
    assert (abs(x1 - (x0 + x2) / 2) < 0.2) == is_log
    assert chart.count("<circle") == 1


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-12, 1e12])
def test_a_chart_of_one_value_can_be_drawn(value):
    chart = line_chart("t", "x", [Line([(0.0, value)])])
    assert "<circle" in chart
    assert value < 0 or ">-" not in chart  # nor is the axis
