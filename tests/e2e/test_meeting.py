"""Runs that meet in one folder: one goes on, the other says whose it is and touches nothing."""

from __future__ import annotations

import json

import pytest

from diablo_ds.files.layout import OWNER_FOLDER, list_checkpoints
from diablo_ds.training.checkpoint import verify_checkpoint
from tests.e2e.commands import losses
from tests.forked import Command
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e


def _end(command: Command) -> tuple[int, str]:
    result = command.result(check=False)
    output = result.stdout + result.stderr
    assert "Traceback" not in output, output
    return result.returncode, output


def test_of_two_starts_into_one_folder_one_runs(options, tmp_path):
    folder = tmp_path / "run"
    # Long enough for the second, however late, to find the first at work.
    options = [*options, "--output", folder, "--save-every", 1, "--max-steps", 3000]
    commands = [Command("train", *options), Command("train", *options)]
    wait_until(lambda: any(command.has_ended() for command in commands), "the second start")
    loser = next(command for command in commands if command.has_ended())
    (winner,) = (command for command in commands if command is not loser)
    code, output = _end(loser)
    assert code == 2, output
    assert f"run folder must not be in use by another process; got {folder}" in output
    assert f"in use by process {winner.processes[0].pid} of " in output

    wait_until(lambda: len(list_checkpoints(folder / "checkpoints")) == 2, "checkpoints")
    # Another process takes the folder over, as one on another host may after a long pause.
    (mine,) = (folder / OWNER_FOLDER).iterdir()
    successor = json.loads(mine.read_text()) | {"token": "x", "host": "node17", "pid": 4711}
    (folder / OWNER_FOLDER / "000000002.json").write_text(json.dumps(successor))
    code, output = _end(winner)
    assert code == 2, output
    assert "run folder must stay this process's" in output
    assert "taken over by process 4711 of " in output
    steps = list(losses(folder))
    assert steps == list(range(1, len(steps) + 1))
    for checkpoint in list_checkpoints(folder / "checkpoints"):
        verify_checkpoint(checkpoint)
    assert not (folder / "adapter").exists()
