"""`diablo-ds slurm`: the script's header, and what is checked before it is written."""

from __future__ import annotations

import shlex
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from diablo_ds import __version__
from diablo_ds.cli.main import main
from tests.tiny import save_model, write_pairs

SECRET = "hf_Kx81mDzSentinel"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    data = write_pairs(folder / "pairs.jsonl")
    return ["--model", str(save_model(folder / "model")), "--data", str(data), "--num-blocks", "4"]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The command in an empty folder, on a machine without SLURM."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin/nothing")

    def run(*words):
        return CliRunner().invoke(main, ["slurm", *map(str, words)], prog_name="diablo-ds")

    return run


def _header(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("# ")][:3]


def test_the_header_names_command_version_and_date(slurm, inputs):
    words = ["--gpus-per-node", "2", "--name", "two words", "--output", "run", *inputs]
    result = slurm(*words, "--no-check")
    assert result.exit_code == 0, result.output
    file = Path("run/logs/job.sbatch").absolute()
    made, command, submit = _header(file.read_text())
    assert made.startswith(f"# Made by diablo-ds {__version__} on ")
    date = datetime.fromisoformat(made.split(" on ")[1].removesuffix(", with"))
    assert abs((datetime.now().astimezone() - date).total_seconds()) < 3600
    assert shlex.split(command[1:]) == ["diablo-ds", "slurm", *words, "--no-check"]
    assert submit == f"# Submit: sbatch {file}"


@pytest.mark.parametrize("form", [("--env", "A_TOKEN={}"), ("--env=A_TOKEN={}",)])
def test_the_header_holds_no_secret_and_every_other_value(slurm, form):
    words = [word.format(SECRET) for word in form]
    result = slurm("--gpus-per-node", 1, *words, "--env", "B=1", "--output", "x", "--dry-run")
    assert result.exit_code == 0, result.output
    assert SECRET not in result.output
    shown = [word.removesuffix("={}") for word in form]
    _, command, _ = _header(result.stdout)
    expected = f"--gpus-per-node 1 {shlex.join(shown)} --env B=1 --output x --dry-run"
    assert command == f"#   diablo-ds slurm {expected}"


def test_a_folder_whose_name_would_end_the_headers_line_is_refused(slurm, tmp_path, monkeypatch):
    folder = tmp_path / "a\ntouch executed #"
    folder.mkdir()
    monkeypatch.chdir(folder)
    result = slurm("--gpus-per-node", 1, "--output", tmp_path / "x", "--no-check", "--dry-run")
    assert result.exit_code == 2
    assert "must be text without control characters" in result.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--data", "missing.jsonl"], "missing.jsonl"),
        (["--model", "./missing"], "missing"),
        (["--targets", "no_such_proj"], "no_such_proj"),
        (["--num-blocks", "7"], "num_blocks"),
        (["--max-length", "4"], "at most 4 tokens"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_inputs_are_found_before_the_script_is_written(
    slurm, inputs, changes, message, tmp_path
):
    words = dict(zip(inputs[::2], inputs[1::2], strict=True))
    words |= dict([changes])
    given = [word for pair in words.items() for word in pair]
    result = slurm("--gpus-per-node", 2, "--output", "run", *given)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "give --no-check" in result.output
    assert list(tmp_path.iterdir()) == []
    assert slurm("--gpus-per-node", 2, "--output", "run", *given, "--no-check").exit_code == 0
    assert Path("run/logs/job.sbatch").is_file()


@pytest.mark.parametrize(
    "options",
    [
        "--precision bf16",
        "--precision fp16",
        "--delta-path triton",
        "--compile on",
        "--attention flash_attention_2",
        "--memory-budget 1000",
    ],
)
def test_what_only_the_nodes_have_is_not_asked_of_this_machine(slurm, inputs, options):
    words = ("--gpus-per-node", 8, "--nodes", 4, "--output", "run", *inputs)
    result = slurm(*words, *options.split())
    assert result.exit_code == 0, result.output
    assert Path("run/logs/job.sbatch").is_file()


def test_every_value_of_a_sweep_over_inputs_is_checked(slurm, inputs, tmp_path):
    others = inputs[:2] + inputs[4:]
    data = inputs[3]
    sweep = ("--sweep", f"data={data},missing.jsonl")
    result = slurm("--gpus-per-node", 2, "--output", "run", *others, *sweep)
    assert result.exit_code == 2
    assert "missing.jsonl" in result.output
    assert list(tmp_path.iterdir()) == []
