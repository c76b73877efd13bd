"""Each tracker with its real package, on this machine: first a start of a run, then another."""

from __future__ import annotations

import importlib.util
import os
import sqlite3
import stat
import struct
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from diablo_ds.config.choices import TRACKERS
from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.trackers.process import TITLES, TrackerProcess, check_packages
from tests.waiting import WAIT_S

pytestmark = pytest.mark.slow
SECRET = "0123456789abcdef0123456789abcdef01234567"
STARTS = ((1, 2, 3), (2, 3, 4, 5))
"""The second one takes steps again, as after a kill."""
STEPS = (1, 2, 3, 4, 5)


def _is_there(kind: str) -> bool:
    needed = ("mlflow", "sqlalchemy") if kind == "mlflow" else (kind,)
    return all(importlib.util.find_spec(name) for name in needed)


def _png() -> bytes:
    """One grey pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        code = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + code

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0\x80")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def _record(tracker: TrackerProcess, steps: tuple[int, ...]) -> None:
    tracker.hyperparameters({"seed": 7, "rate": 1e-3 * steps[0], "model": "tiny", "packed": True})
    first = steps[0]
    tracker.text(first, "run/table", "| a |\n|---|\n| b |")
    tracker.image(first, "deltas/heat_map", _png())
    tracker.histogram(first, "deltas/norms", [1.0, 2.0, 4.0])
    tracker.event(first, datetime(2026, 11, 27, 12, tzinfo=UTC), "restarted")
    for step in steps:
        tracker.scalars(step, {"loss/training": 1 / step, "optimizer/grad_norm": float("nan")})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All trackers that are installed, with a secret, and settings in the working folder."""
    root = tmp_path_factory.mktemp("trackers")
    (root / "here" / "wandb").mkdir(parents=True)
    (root / "here" / "wandb" / "settings").write_text("[default]\nproject = evil\nmode = online\n")
    (root / "here" / ".env").write_text("TRACKIO_PROJECT=evil\nMLFLOW_EXPERIMENT_NAME=evil\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root / "here")
        for name in [name for name in os.environ if name.startswith(("WANDB", "MLFLOW", "TRACK"))]:
            patch.delenv(name)
        patch.setenv("WANDB_API_KEY", SECRET)
        patch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
        patch.setenv("TRACKIO_WRITE_TOKEN", SECRET)
        for steps in STARTS:
            trackers = [
                TrackerProcess(
                    kind, root / "run" / kind, "mine", start_step=steps[0] - 1, close_s=WAIT_S
                )
                for kind in TRACKERS
                if _is_there(kind)
            ]
            for tracker in trackers:
                _record(tracker, steps)
            for tracker in trackers:
                tracker.close()
        yield root / "run"


@pytest.fixture
def of(folder, request):
    """The folder of one tracker."""
    if not _is_there(request.param):
        pytest.skip(f"{request.param} is not installed")
    print((folder / request.param / "log.txt").read_text())  # noqa: T201 - of a test that fails
    return folder / request.param


@pytest.mark.parametrize("of", ["wandb"], indirect=True)
def test_wandb_has_both_starts_as_one_run_offline(of):
    files = sorted(of.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == len(STARTS)
    assert len({file.name for file in files}) == 1  # by the run's name, which wandb sync goes by
    for file, steps in zip(files, STARTS, strict=True):
        data = file.read_bytes()
        for part in ("loss/training", "restarted", "diablo-ds", "packed", str(1 / steps[-1])):
            assert part.encode() in data
        media = file.parent / "files" / "media"
        assert {path.suffix for path in media.rglob("*.*")} == {".html", ".png"}


@pytest.mark.parametrize("of", ["mlflow"], indirect=True)
def test_mlflow_has_both_starts_as_one_run(of):
    connection = sqlite3.connect(of / "mlflow.db")
    assert connection.execute("select name, status from runs").fetchall() == [("mine", "FINISHED")]
    names = [name for (name,) in connection.execute("select name from experiments")]
    assert "diablo-ds" in names
    query = "select step, value from metrics where key = 'loss/training' order by step"
    found = connection.execute(query).fetchall()
    assert found == [(step, 1 / step) for step in STEPS]
    query = "select value from metrics where key = 'deltas/norms/median'"
    assert set(connection.execute(query)) == {(2.0,)}
    params = dict(connection.execute("select key, value from params").fetchall())
    assert params == {"seed": "7", "rate": "0.001", "model": "tiny", "packed": "True"}
    tags = dict(connection.execute("select key, value from tags").fetchall())
    assert tags["changed.rate"] == "0.002"
    assert tags["event.20261127T120000.step-2"] == "restarted"
    for name in ("run/table/step-000001.md", "deltas/heat_map/step-000002.png"):
        assert len(list(of.glob(f"artifacts/*/artifacts/{name}"))) == 1


@pytest.mark.parametrize("of", ["trackio"], indirect=True)
def test_trackio_has_both_starts_as_one_run(of):
    connection = sqlite3.connect(of / "diablo-ds.db")
    rows = connection.execute("select run_id, run_name, step, metrics from metrics").fetchall()
    assert len({row[:2] for row in rows}) == 1
    assert rows[0][1].startswith("mine-")
    steps = [step for *_, step, values in rows if b'"loss/training"' in bytes(values)]
    assert steps == list(STEPS)
    text = " ".join(bytes(values).decode() for *_, values in rows)
    for kind in ("trackio.markdown", "trackio.image", "trackio.histogram"):
        assert text.count(kind) >= len(STARTS)
    ((config,),) = connection.execute("select config from configs")
    assert b'"rate":0.002' in bytes(config)


@pytest.mark.parametrize("of", TRACKERS, indirect=True)
def test_files_are_private_and_hold_no_secret_nor_what_the_working_folder_says(of):
    paths = [path for path in (of, *of.rglob("*")) if not path.is_symlink()]
    assert not [path for path in paths if stat.S_IMODE(path.lstat().st_mode) & 0o077]
    for path in paths:
        if path.is_file():
            data = path.read_bytes()
            assert SECRET.encode() not in data, path
            assert b"evil" not in data, path
    assert not list(of.parent.parent.glob("here/*.db"))


def test_a_tracker_without_its_package_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed; run pip install 'diablo-ds\[mlflow\]'"):
        check_packages(["mlflow"])
    check_packages([])
    for names in (("wandb", "wandb"), ("w",)):
        with pytest.raises(UserError, match="report_to must"):
            RunConfig(report_to=names)
    assert TITLES.keys() == {*TRACKERS}
