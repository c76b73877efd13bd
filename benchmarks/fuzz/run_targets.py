"""Run folders, sweeps and evaluations: what `status`, `explain`, `runs` and `report` read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from benchmarks.fuzz import hostile
from benchmarks.fuzz.target import Target
from benchmarks.fuzz.valid import EVALUATION, PREDICTION, RESULT, RESULTS, YAML

_LOG = "logs/attempt-001/rank-00000"
_POINTS = (
    {"step": 0, "heldout_loss": 2.5},
    {"step": 1, "loss": 2.25, "learning_rate": 1e-4, "grad_norm": 1.5, "step_s": 0.5}
    | {"tokens_per_s": 10.0, "memory_bytes": 10**9, "mfu": 0.25, "evaluation_s": 0.5},
    {"step": 2, "loss": 1.5, "step_s": 0.1, "tokens_per_s": 10.0, "memory_bytes": 2 * 10**9},
    {"step": 2, "heldout_loss": 2.0},
)


def run_targets(folder: Path) -> list[Target]:
    """Return the readers of run folders.

    Args:
        folder: to make valid files in.
    """
    return [*_runs(folder), _sweep(), _evaluation(), _events(folder), _given_config()]


def run_files(folder: Path) -> dict[str, bytes]:
    """Return the files of a run that took two steps on two hosts and then failed.

    Args:
        folder: to make them in.
    """
    from diablo_ds.config.run import RunConfig
    from diablo_ds.config.starts import STARTS, Change, StartRecord
    from diablo_ds.files import owner_file
    from diablo_ds.files.layout import OWNER_FOLDER
    from diablo_ds.ranks.records import RankRecord, write_record
    from diablo_ds.trackers.run_id import ID_FILE
    from diablo_ds.training.metrics_file import format_point

    logs = folder / "logs"
    logs.mkdir(mode=0o700)
    write_record(logs, RankRecord(0, "h", 1, 1, 1.0, ended=2.0, exit_code=1, cause="c", phase="p"))
    counts = {"fingerprint": "f", "examples": 3, "tokens": 60, "sequences": 3}
    start = StartRecord(
        date="2026-01-02T03:04:05+00:00",
        command="diablo-ds train",
        working_folder="/",
        version="1.0",
        commit="c",
        is_modified=True,
        hosts=({"name": "h", "ranks": 1, "device": "cpu"}, {"name": "i"}),
        world_size=2,
        gradient_accumulation_steps=4,
        start_step=1,
        changes=(Change("seed", 1, 2),),
        ds_config_file="ds_configs/zero3.json",
        ds_config={"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}},
        library_versions={"torch": "2.0"},
        model={"id": "m", "revision": "r", "path": "/m", "fingerprint": "f"},
        data={"train": counts, "heldout": counts},
        plan={"tokens_per_s": 20.0, "step_s": 0.5, "mfu": 0.5, "memory_bytes": 1e9},
        hub={"models/o/n": "r"},
    )
    settings = dataclasses.asdict(RunConfig(global_batch=8, micro_batch=1, data=("a", "b")))
    given = settings | {STARTS: [start.as_json()], "ds_config": start.ds_config}
    owner = owner_file.Owner("m", "h", "u", 1, 2, "a", "b")
    return {
        "run.json": json.dumps(given, default=str).encode(),
        "metrics.jsonl": "".join(map(format_point, _POINTS)).encode(),
        "progress.json": b'{"num_steps": 4, "start_step": 0, "done": false}',
        f"{_LOG}.json": (logs / "rank-00000.json").read_bytes(),
        f"{_LOG}.log": b"a\nError: b\n",
        f"{OWNER_FOLDER}/000000001.json": owner_file.to_bytes(owner),
        f"trackers/t/{ID_FILE}": b'{"id": "i"}',
    }


def _runs(folder: Path) -> list[Target]:
    from diablo_ds.config.run_files import load_recorded
    from diablo_ds.files import owner_file
    from diablo_ds.files.layout import RunFolder
    from diablo_ds.launcher.explaining import explain_end
    from diablo_ds.launcher.status import describe_status
    from diablo_ds.reporting.record import find_runs
    from diablo_ds.reporting.report import write_report
    from diablo_ds.reporting.response import response_of_folder
    from diablo_ds.reporting.table import filtered, runs_json, runs_table, sorted_runs
    from diablo_ds.trackers.run_id import read_run_id

    run = run_files(folder)
    owner = next(name for name in run if name.startswith(".owner"))
    made = {
        "run.json": hostile.JSON,
        "metrics.jsonl": [*hostile.LINES, *hostile.DEEP_JSON],
        "progress.json": hostile.JSON,
        f"{_LOG}.json": hostile.JSON,
    }

    def read_run(place: Path) -> None:
        describe_status(place)
        explain_end(place)
        files = RunFolder(place)
        files.is_done(), files.early_stop(), files.evals_without_better()
        read_run_id(files.tracker("t"))
        load_recorded(files.run_config)

    compared = {f"a/{name}": content for name, content in run.items()}
    compared |= {f"b/{name}": run[name] for name in ("run.json", "metrics.jsonl")}
    compared["b/run.json"] = run["run.json"].replace(b'"learning_rate": 0', b'"learning_rate": 1')
    results = [RESULT | {"name": name, "values": {"rate": "0.1"}} for name in "ab"]
    compared["sweep.json"] = json.dumps({"command": "x", "best": None, "runs": results}).encode()
    scores = json.loads(json.dumps(RESULTS))
    scores["run"]["models"]["m"] = "a/adapter"
    compared["a/scores/evaluation.json"] = json.dumps(EVALUATION | {"working_folder": ""}).encode()
    compared["a/scores/results.json"] = json.dumps(scores).encode()

    def read_runs(place: Path) -> None:
        found = list(find_runs(place))
        for name in ("date", "steps", "heldout-best", "seed", "data"):
            sorted_runs(found, name, descending=True)
        list(filtered(found, ["loss<3", "state!=done", "learning_rate>0"]))
        runs_table(found), runs_json(found), response_of_folder(place, found)

    def report(place: Path) -> None:
        evaluation = place / "a" / "scores"
        write_report([place, evaluation], place / "all.html")
        write_report([place / "a"], place / "one.html")

    below = {f"a/{name}": contents for name, contents in made.items()}
    below["sweep.json"] = hostile.JSON
    read = [name for name in run if not name.endswith(".log")]
    listed = [name for name in compared if name.endswith((".json", "metrics.jsonl"))]
    few = [b"", b"null", b"[]", b"{}", hostile.DEEP_JSON[-1]]  # a page takes its time
    return [
        Target("records of a run", run, read, read_run, made),
        Target("runs that are compared", compared, listed, read_runs, below),
        Target("report", compared, listed, report, dict.fromkeys(listed, few)),
        Target(
            "owner's file",
            {"o.json": run[owner]},
            ["o.json"],
            lambda place: owner_file.parse(owner_file.read(place / "o.json")),
            {"o.json": hostile.JSON},
        ),
    ]


def _sweep() -> Target:
    from diablo_ds.launcher.sweep_report import describe_sweep

    sweep = {"command": "x", "best": None, "runs": [RESULT, RESULT]}
    files = {"sweep.json": json.dumps(sweep).encode()}
    return Target("sweep.json", files, [*files], describe_sweep, {"sweep.json": hostile.JSON})


def _evaluation() -> Target:
    from diablo_ds.evaluation.description import describe_evaluation, describe_evaluation_status

    def read(place: Path) -> None:
        describe_evaluation(place)
        describe_evaluation_status(place)

    files = {
        "evaluation.json": json.dumps(EVALUATION).encode(),
        "results.json": json.dumps(RESULTS).encode(),
        "predictions.jsonl": json.dumps(PREDICTION).encode() + b"\n",
    }
    made = {
        "predictions.jsonl": [*hostile.LINES, *hostile.DEEP_JSON],
        "results.json": hostile.JSON,
        "evaluation.json": hostile.JSON,
    }
    return Target("evaluation", files, [*files], read, made)


def _events(folder: Path) -> Target:
    from diablo_ds.ranks.event_files import EventFile, cut_event_files

    events = folder / "tensorboard"
    written = EventFile(events)
    for step in range(4):
        value: dict[str, Any] = {"tag": "loss", "simple_value": 1.0}
        written.write(step=step, summary={"value": [value]})
    written.close()
    (file,) = events.iterdir()
    content = file.read_bytes()

    def cut(place: Path) -> None:
        cut_event_files(place, 2, lambda tag: tag != "loss")

    made = [b"", b"\xff" * 12, b"\0" * 1_000_000, content * 1000]
    return Target("TensorBoard's events", {file.name: content}, [file.name], cut, {file.name: made})


def _given_config() -> Target:
    """Return the reader of the copy of `--config` that a run folder keeps."""
    from diablo_ds.config.given_file import keep_given_file
    from diablo_ds.config.run_files import load_settings
    from diablo_ds.files.layout import GIVEN_CONFIG_FILES

    name = GIVEN_CONFIG_FILES[0]

    def read(place: Path) -> None:
        keep_given_file(place / name, place / "copies")
        load_settings(place / "copies" / name)
        keep_given_file(place / "copies" / name, place / "copies")

    return Target("given_config.yaml", {name: YAML}, [name], read, {name: hostile.YAML})
