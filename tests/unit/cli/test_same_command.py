from __future__ import annotations

import shlex

import click
import pytest
from click.testing import CliRunner

from diablo_ds.cli.options import GroupedCommand
from diablo_ds.cli.same_command import same_command


@click.command(cls=GroupedCommand)
@click.option("--output")
@click.option("--env", multiple=True)
@click.option("--targets", multiple=True)
def _start(output, env, targets):
    click.echo(same_command("runs/a new one"))


def _run(*words):
    result = CliRunner().invoke(_start, words, prog_name="diablo-ds launch")
    assert result.exit_code == 0, result.output
    return shlex.split(result.output)


def test_the_command_can_be_given_again_word_for_word():
    words = ["--targets", "re:.*(q|v)$", "--targets=a b", "--output", "runs/it's"]
    assert _run(*words) == ["diablo-ds", "launch", *words]


def test_a_run_folder_that_was_chosen_is_named():
    assert _run("--targets", "x")[-2:] == ["--output", "runs/a new one"]


@pytest.mark.parametrize("words", [["--env", "HF_TOKEN=abc"], ["--env=HF_TOKEN=abc"]])
def test_a_secret_is_taken_from_the_shell_the_next_time(words):
    again = _run(*words, "--env", "SEED=1", "--output", "x")
    assert "abc" not in " ".join(again)
    assert ("--env=HF_TOKEN" in again) or again[2:4] == ["--env", "HF_TOKEN"]
    assert "SEED=1" in again
