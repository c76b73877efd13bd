"""A benchmark whose inputs are missing says so, without a traceback and before it measures."""

from __future__ import annotations

import importlib.util
import runpy
import sys

import pytest

HARNESS = [f"benchmarks.{name}" for name in ("agreement", "evaluate")]


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs a module as a command: its exit code and what it says."""

    def run_module(module, words):
        monkeypatch.setattr(sys, "argv", [module, *words])
        monkeypatch.delitem(sys.modules, module, raising=False)
        with pytest.raises(SystemExit) as end:
            runpy.run_module(module, run_name="__main__")
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return end.value.code, said

    return run_module


@pytest.fixture(params=[True, False])
def has_harness(request, monkeypatch):
    """Whether lm-evaluation-harness looks installed, which is all that is looked at first."""
    find_spec = importlib.util.find_spec
    known = {"lm_eval": find_spec("json") if request.param else None}

    def found(name, *more):
        return known[name] if name in known else find_spec(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", found)
    return request.param


@pytest.mark.parametrize("module", HARNESS)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--score", "boolq=2", "--data", "boolq=/no/such/file"], "a path that exists"),
        (["--score", "boolq=2", "--data", "boolq"], "--data must be TASK=PATH"),
        (["--score", "boolk=2"], "task must be a known one"),
    ],
)
def test_a_missing_harness_or_missing_data_are_named(
    module, words, message, has_harness, run, tmp_path
):
    code, said = run(module, ["--output", str(tmp_path / "out"), *words])
    assert code == 2
    assert said.startswith("Error: ")
    assert (message if has_harness else "pip install 'diablo-ds[bench]'") in said
    assert not (tmp_path / "out").exists()


def test_a_report_of_nothing_is_named(run, tmp_path):
    words = ["--report", "--output", str(tmp_path)]
    code, said = run("benchmarks.gpu.__main__", words)
    assert code == 2
    assert said.startswith("Error: a report needs measured cases")
