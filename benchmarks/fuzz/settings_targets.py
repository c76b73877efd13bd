"""Configs, hostfiles and the records in run folders."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from benchmarks.fuzz import hostile
from benchmarks.fuzz.target import Target

_YAML = b"""learning-rate: 1e-4
targets: [q_proj, 'v_proj']
ds_config:
  zero_optimization: {stage: 2, overlap_comm: true}
"""
_ZERO3 = Path(__file__).parents[2] / "ds_configs" / "zero3.json"
_ROW = {"model": "m", "task": "t", "kind": "choice", "id": "1", "sample": 0, "scores": {"a": 1.0}}


def settings_targets(folder: Path) -> list[Target]:
    """Return the readers of settings and records.

    Args:
        folder: to make valid files in.
    """
    return [*_configs(), *_records(folder)]


def _configs() -> list[Target]:
    from diablo_ds.config.run import RunConfig
    from diablo_ds.config.run_files import load_run_config, load_settings
    from diablo_ds.launcher.cluster import read_hostfile
    from diablo_ds.model.architecture import BaseSizes
    from diablo_ds.zero.ds_config import complete_ds_config, load_ds_config

    base = BaseSizes(hidden_size=32, total=10_000, layer=2_000, head=1_000)
    run_config = json.dumps(dataclasses.asdict(RunConfig()), indent=1, default=str).encode()

    def ds_config(place: Path) -> None:
        values = load_ds_config(place / "ds.json")
        given = RunConfig(micro_batch=2, global_batch=8)
        complete_ds_config(values, given, world_size=2, base=base, source="ds.json")

    def one(name: str, content: bytes, read: object, made: list[bytes]) -> Target:
        return Target(name, {name: content}, [name], read, {name: made})  # type: ignore[arg-type]

    hosts = [b"a slots=1\n" * 100_000, b"-oProxyCommand=id slots=1", b"a" * 3_000_000, b"\0"]
    return [
        one("run.json", run_config, lambda p: load_run_config(p / "run.json"), hostile.JSON),
        one("run.yaml", _YAML, lambda p: load_settings(p / "run.yaml"), hostile.YAML),
        one("ds.json", _ZERO3.read_bytes(), ds_config, hostile.JSON),
        one("hosts", b"# x\na slots=4\nb slots=4\n", lambda p: read_hostfile(p / "hosts"), hosts),
    ]


def _records(folder: Path) -> list[Target]:
    from diablo_ds.evaluation.description import describe_evaluation_status
    from diablo_ds.files import owner_file
    from diablo_ds.files.layout import RunFolder, kind_of
    from diablo_ds.launcher.explaining import explain_end
    from diablo_ds.launcher.status import describe_status
    from diablo_ds.launcher.sweep_report import describe_sweep
    from diablo_ds.ranks.event_files import EventFile, cut_event_files
    from diablo_ds.ranks.records import RankRecord, write_record
    from diablo_ds.reporting.curves import known_charts
    from diablo_ds.reporting.record import find_runs, read_given
    from diablo_ds.reporting.response import response_of_folder
    from diablo_ds.reporting.table import runs_json, runs_table
    from diablo_ds.training.metrics_file import format_point

    logs = folder / "logs"
    logs.mkdir(mode=0o700)
    write_record(logs, RankRecord(0, "h", 1, 2, 1.0, ended=2.0, exit_code=1, cause="c", phase="p"))
    point = {"step": 3, "loss": 1.5, "step_s": 0.1, "tokens_per_s": 10.0, "heldout_loss": 2.0}
    run = {
        "run.json": b"{}",
        "metrics.jsonl": format_point(point).encode() * 2,
        "progress.json": b'{"num_steps": 4, "start_step": 0, "done": false}',
        "logs/attempt-001/rank-00000.json": (logs / "rank-00000.json").read_bytes(),
        "logs/attempt-001/rank-00000.log": b"a\nError: b\n",
    }

    def read_run(place: Path) -> None:
        describe_status(place)
        explain_end(place)
        files = RunFolder(place)
        files.is_done(), files.early_stop(), files.evals_without_better()

    compared = {
        "a/run.json": json.dumps({"num_blocks": 4, "starts": [{"time": "t", "world_size": 2}]}),
        "a/metrics.jsonl": format_point(point) * 2,
        "a/progress.json": '{"num_steps": 4, "start_step": 0, "done": true}',
        "sweep.json": json.dumps({"command": "x", "best": None, "runs": [_RESULT | {"name": "a"}]}),
    }

    def read_runs(place: Path) -> None:
        found = find_runs(place)
        runs_table(found), runs_json(found), known_charts(found)
        response_of_folder(place, found)
        read_given([place])

    sweep = {"command": "x", "best": None, "runs": [_RESULT, _RESULT]}
    evaluation = {
        "format": 1,
        "models": {"m": {"kind": "base"}},
        "tasks": {"t": {"file": "f"}},
        "settings": {"task": ["t"]},
        "working_folder": "/",
        "answers": {"m": {"t": 3}},
    }
    owner = owner_file.to_bytes(owner_file.Owner("m", "h", "u", 1, 2, "a", "b"))

    def read_owner(place: Path) -> None:
        owner_file.parse(owner_file.read(place / "o.json"))

    def cut_events(place: Path) -> None:
        cut_event_files(place, 2, lambda tag: tag != "loss")

    events = folder / "tensorboard"
    written = EventFile(events)
    for step in range(4):
        value = {"tag": "loss", "simple_value": 1.0}
        written.write(step=step, summary={"value": [value]})
    written.close()
    (event_file,) = events.iterdir()
    event_bytes = event_file.read_bytes()

    return [
        Target(
            "TensorBoard's events",
            {event_file.name: event_bytes},
            [event_file.name],
            cut_events,
            {event_file.name: [b"", b"\xff" * 12, b"\0" * 1_000_000, event_bytes * 1000]},
        ),
        Target(
            "records of a run",
            run,
            [name for name in run if name not in ("run.json", "logs/attempt-001/rank-00000.log")],
            read_run,
            {
                "metrics.jsonl": [*hostile.LINES, *hostile.DEEP_JSON],
                "progress.json": hostile.JSON,
                "logs/attempt-001/rank-00000.json": hostile.JSON,
            },
        ),
        Target(
            "runs that are compared",
            {name: text.encode() for name, text in compared.items()},
            list(compared),
            read_runs,
            {
                "a/run.json": hostile.JSON,
                "a/metrics.jsonl": [*hostile.LINES, *hostile.DEEP_JSON],
                "sweep.json": hostile.JSON,
            },
        ),
        Target(
            "sweep.json",
            {"sweep.json": json.dumps(sweep).encode()},
            ["sweep.json"],
            describe_sweep,
            {"sweep.json": hostile.JSON},
        ),
        Target(
            "evaluation",
            {
                "evaluation.json": json.dumps(evaluation).encode(),
                "predictions.jsonl": json.dumps(_ROW).encode() + b"\n",
            },
            ["evaluation.json", "predictions.jsonl"],
            describe_evaluation_status,
            {
                "predictions.jsonl": [*hostile.LINES, *hostile.DEEP_JSON],
                "evaluation.json": hostile.JSON,
            },
        ),
        Target("owner's file", {"o.json": owner}, ["o.json"], read_owner, {"o.json": hostile.JSON}),
        Target(
            "kind of a folder",
            {"manifest.json": b'{"files": {}}'},
            ["manifest.json"],
            kind_of,
            {"manifest.json": [*hostile.JSON, *hostile.MANY_VALUES]},
        ),
    ]


_RESULT = {
    "name": "r",
    "values": {"learning-rate": "0.1"},
    "status": "failed",
    "exit_code": 1,
    "keeps_best": False,
}
