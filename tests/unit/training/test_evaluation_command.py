"""The command that a run ends with: it is one that the options of evaluate take."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from diablo_ds.cli.evaluate import evaluate
from diablo_ds.cli.options import from_options
from diablo_ds.config.remote_code import VARIABLE
from diablo_ds.config.run import RunConfig
from diablo_ds.evaluation.inputs import read_inputs
from diablo_ds.evaluation.options import EvaluateOptions
from diablo_ds.training.next_commands import describe_next, evaluation_command, folded
from tests.tiny import write_pairs


def parsed(command: str) -> EvaluateOptions:
    """Return the options that a command line gives."""
    program, name, *words = shlex.split(command)
    assert (program, name) == ("diablo-ds", "evaluate")
    return from_options(EvaluateOptions, evaluate.make_context(name, words).params)


def test_the_default_data_are_questions_of_gsm8k():
    options = parsed(evaluation_command(RunConfig(), Path("runs/my run")))
    assert options.adapter == ("runs/my run",)
    (given,) = read_inputs(options)
    assert given.name == "gsm8k"
    assert len(given.questions) == 20


def test_held_out_data_of_ones_own_give_a_loss(tmp_path):
    train, heldout = (str(write_pairs(tmp_path / name)) for name in ("a.jsonl", "b.jsonl"))
    config = RunConfig(data=(train,), heldout_data=(heldout,))
    (given,) = read_inputs(parsed(evaluation_command(config, tmp_path / "run")))
    assert (given.name, given.path) == ("loss", Path(heldout))
    assert evaluation_command(RunConfig(data=(train,)), tmp_path / "run") == ""


def test_the_next_commands_trust_code_where_the_run_did(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert "trust" not in describe_next(RunConfig(), Path("run"))
    monkeypatch.setenv(VARIABLE, "1")
    title, *lines = describe_next(RunConfig(), Path("run")).splitlines()
    assert title == "Next:"
    assert ["--trust-remote-code" in line for line in lines[:6]] == [True, True, *[False] * 4]
    assert parsed(lines[1].strip()).adapter == ("run",)
    assert "diablo-ds report run --output run-report.html" in lines[3]
    assert "no password" in lines[6]


@pytest.mark.parametrize("columns", [20, 40, 80, 1000])
def test_a_shell_takes_the_rows_of_a_command_as_one(columns):
    words = [
        "printf",
        "%s\\0",
        "--adapter",
        "/a folder/" + 30 * "x",
        "--compare-base",
        "it's",
        "a" * 60,
    ]
    rows = folded(shlex.join(words), columns).splitlines()
    assert (len(rows) == 1) == (columns == 1000)
    for row in rows:  # a word alone, or an option with its value, may be longer than a row
        assert len(row) <= columns or len(shlex.split(row.rstrip("\\"))) <= 2
    assert any("--adapter '/a folder" in row for row in rows)
    shell = subprocess.run(["bash", "-c", "\n".join(rows)], check=True, capture_output=True)
    assert shell.stdout.decode().split("\0")[:-1] == words[2:]
