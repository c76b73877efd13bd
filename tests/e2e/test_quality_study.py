"""The study's command: it trains, is stopped, continues, and reports."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from tests.e2e.commands import ROOT, assert_user_error, environment
from tests.quality_sources import write_sources
from tests.tiny import save_model
from tests.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.e2e

AMOUNTS = {"num_held_out": 6, "num_seeds": 2, "final_examples": 8, "batch_examples": 32}


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command up to the folder of results."""
    folder = tmp_path_factory.mktemp("study")
    sources = write_sources(folder, {"piqa": 30, "winogrande": 40, "arc_easy": 30})
    model = save_model(folder / "model", max_position_embeddings=512)
    words = [sys.executable, "-m", "benchmarks.quality", "--model", str(model)]
    words += ["--commonsense", sources["commonsense"], "--gsm8k", sources["gsm8k"]]
    words += ["--precision", "fp32", "--examples", "8", "--part", "permutation"]
    return [*words, *(f"--amount={name}={n}" for name, n in AMOUNTS.items()), "--output"]


def _run(command, folder, *more):
    return subprocess.run(
        [*command, str(folder), *more],
        cwd=ROOT,
        env={**environment(), "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )


def _lines(folder):
    path = folder / "records.jsonl"
    return path.read_text().splitlines() if path.is_file() else []


def test_a_study_is_stopped_continues_and_reports(command, tmp_path):
    with subprocess.Popen(
        [*command, str(tmp_path)],
        cwd=ROOT,
        env={**environment(), "DS_ACCELERATOR": "cpu"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A script's background, where tests may run, ignores it, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        wait_until(
            lambda: len(_lines(tmp_path)) >= 2 or process.poll() is not None, "two trainings"
        )
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130, errors
    assert "To continue: python -m benchmarks.quality" in errors
    before = _lines(tmp_path)

    second = _run(command, tmp_path)
    assert second.returncode == 0, second.stderr
    assert "Nothing is left to train." in second.stderr
    after = _lines(tmp_path)
    assert after[: len(before)] == before
    records = [json.loads(line) for line in after]
    assert len({r["key"] for r in records}) == len(records)
    assert {r["status"] for r in records} <= {"done", "diverged"}
    assert {r["spec"]["permuted"] for r in records} == {False, True}

    page = (tmp_path / "report.md").read_text()
    assert "DiaBlo N=32, permuted" in page or "DiaBlo N=16, permuted" in page
    (tmp_path / "report.md").unlink()
    only = _run(command, tmp_path, "--report-only")
    assert only.returncode == 0, only.stderr
    assert (tmp_path / "report.md").read_text() == page
    assert _lines(tmp_path) == after


def test_mistakes_are_found_before_anything_is_trained(command, tmp_path):
    words = ["--gsm8k", str(tmp_path / "none")]
    assert_user_error(_run(command, tmp_path / "study", *words), "--gsm8k")
    assert not (tmp_path / "study").exists()
