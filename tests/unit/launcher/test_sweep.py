"""The order of a sweep's runs, and what their folders make of its table; no run is started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import save_run_config
from diablo_ds.config.setting import settings_of
from diablo_ds.config.sweep import combinations, parse_axes
from diablo_ds.errors import UserError
from diablo_ds.files.layout import ADAPTER_CONFIG_FILE, SWEEP_FILE, RunFolder, checkpoint_folder
from diablo_ds.launcher.status import describe_status
from diablo_ds.launcher.supervisor import RunEnd
from diablo_ds.launcher.sweep import Sweep, SweptRun, check_sweep_folder
from diablo_ds.launcher.sweep_report import read_sweep
from diablo_ds.ranks.exit_codes import EXIT_STOPPED, EXIT_USER_ERROR
from diablo_ds.training.metrics_file import format_point

COMMAND = "diablo-ds launch --sweep num-blocks=4,8,16"


class _Starts:
    """Ends each run as it is told to: an exit code, or an error; and counts its starts."""

    def __init__(self, **ends) -> None:
        self.ends, self.started = ends, []

    def __call__(self, run: SweptRun) -> RunEnd:
        number = run.combination.shown[0]
        self.started.append(number)
        end = self.ends.get(f"n{number}", 0)
        if isinstance(end, BaseException):
            raise end
        if end == 0:
            _finish(run, heldout_loss=5.0 - int(number) % 16 / 10)
        return RunEnd(end, was_asked=end == EXIT_STOPPED)


def _finish(run: SweptRun, heldout_loss: float) -> None:
    files = RunFolder(Path(run.run_config.output))
    files.adapter.mkdir(parents=True)
    checkpoint_folder(files.checkpoints, 2).mkdir(parents=True)
    (files.adapter / ADAPTER_CONFIG_FILE).write_text("{}")
    save_run_config(run.run_config, files.run_config)
    files.write_progress(2, 0, done=True)
    step = {"step": 2, "loss": 5.0, "tokens_per_s": 1234.0, "step_s": 1.0, "memory_bytes": 2e9}
    points = [{"step": 1, "heldout_loss": 4.0}, step, {"step": 2, "heldout_loss": heldout_loss}]
    files.metrics.write_text("".join(map(format_point, points)))


def _sweep(root: Path, **changes) -> Sweep:
    axes = parse_axes(["num-blocks=4,8,16"], settings_of(RunConfig), ())
    runs = [
        SweptRun(
            c, RunConfig(output=str(root / c.name), **{"max_steps": 2, **changes, **c.values}), root
        )
        for c in combinations(axes)
    ]
    return Sweep(root, axes, runs, COMMAND)


def _record(root: Path) -> dict:
    return json.loads((root / SWEEP_FILE).read_text())


def test_runs_are_started_in_turn_and_compared(tmp_path, capsys):
    root = tmp_path / "sweep"
    starts = _Starts()
    assert _sweep(root).run(starts) == 0
    assert starts.started == ["4", "8", "16"]
    record = _record(root)
    assert record["best"] == "num-blocks=8"
    assert record["command"] == COMMAND
    first = record["runs"][0]
    assert first["values"] == {"num-blocks": "4"}
    assert (first["status"], first["steps"], first["num_steps"]) == ("done", 2, 2)
    assert (first["final_heldout_loss"], first["best_heldout_loss"], first["best_step"]) == (
        4.6,
        4.0,
        1,
    )
    assert (first["tokens_per_s"], first["peak_memory_bytes"]) == (1234.0, 2_000_000_000)
    text = capsys.readouterr().err
    (best,) = (line for line in text.splitlines() if line.startswith("*  8"))
    assert best.split() == ["*", "8", "2/2", "4.2000", "4.0000", "1", "1,234", "2.00", "done"]
    assert f"tensorboard --logdir {root}" in text
    shown = describe_status(root)
    assert best in shown
    assert COMMAND in shown


def test_the_adapters_own_loss_counts_where_the_best_is_kept(tmp_path):
    _sweep(tmp_path, keep_best=True).run(_Starts())
    assert _record(tmp_path)["best"] == "num-blocks=4"  # all have 4.0, the first of equal ones


def test_a_failing_run_is_reported_and_the_others_go_on(tmp_path, capsys):
    assert _sweep(tmp_path).run(_Starts(n4=137, n8=UserError("folder is in use"))) == 1
    record = _record(tmp_path)
    statuses = [run["status"] for run in record["runs"]]
    assert statuses == ["failed, exit code 137", "failed, exit code 2", "done"]
    text = capsys.readouterr().err
    assert "folder is in use" in text
    assert "1 of 3 runs are done; the others failed" in text
    assert f"\n  {COMMAND}\n" in text


def test_failures_of_input_alone_have_their_exit_code(tmp_path):
    assert _sweep(tmp_path).run(_Starts(n8=EXIT_USER_ERROR)) == EXIT_USER_ERROR


@pytest.mark.parametrize("end", [EXIT_STOPPED, KeyboardInterrupt()])
def test_a_stop_ends_the_sweep_and_the_same_command_goes_on(tmp_path, capsys, end):
    assert _sweep(tmp_path).run(_Starts(n8=end)) == EXIT_STOPPED
    assert [run["status"] for run in _record(tmp_path)["runs"]] == ["done", "stopped", "not run"]
    assert f"1 of 3 runs are done. It continues with:\n  {COMMAND}" in capsys.readouterr().err
    again = _Starts()
    assert _sweep(tmp_path).run(again) == 0
    assert again.started == ["8", "16"]


def test_runs_with_fewer_steps_than_asked_for_are_started_again(tmp_path):
    _sweep(tmp_path).run(_Starts())
    starts = _Starts(n4=1, n8=1, n16=1)
    _sweep(tmp_path, max_steps=3).run(starts)
    assert starts.started == ["4", "8", "16"]


@pytest.mark.parametrize(("name", "what"), [("run.json", "a run folder"), ("x", "other files")])
def test_a_folder_with_something_else_is_no_sweeps(tmp_path, name, what):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"new, empty or a sweep's; got .*{what}"):
        check_sweep_folder(tmp_path)


def test_a_broken_record_is_named(tmp_path):
    (tmp_path / SWEEP_FILE).write_text('{"runs": [{}]}')
    with pytest.raises(UserError, match="must list its runs"):
        describe_status(tmp_path)


@pytest.mark.parametrize("name", ["", "..", "../elsewhere", "/etc", "a/../../b"])
def test_a_record_leads_to_no_folder_elsewhere(tmp_path, name):
    run = {"name": name, "values": {"n": "1"}, "status": "done", "exit_code": 0}
    record = {"command": "x", "best": None, "runs": [run | {"keeps_best": False}]}
    (tmp_path / SWEEP_FILE).write_text(json.dumps(record))
    with pytest.raises(UserError, match="must list its runs"):
        read_sweep(tmp_path)
    run["name"] = "n=1"
    (tmp_path / SWEEP_FILE).write_text(json.dumps(record | {"runs": [run | {"keeps_best": False}]}))
    assert [result.name for result in read_sweep(tmp_path)[0]] == ["n=1"]
