"""What a start of a run that is done has to do, from the small files of its folder alone."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import save_run_config
from diablo_ds.errors import UserError
from diablo_ds.files.layout import RunFolder, checkpoint_folder
from diablo_ds.ranks import log
from diablo_ds.training.extending import describe_done
from diablo_ds.training.next_commands import describe_next


@pytest.fixture
def done(tmp_path):
    """Return a function that makes the folder of a run that is done, and its run config."""

    def make(step: int = 8, early_stop: str = "", num_worse: int | None = 0, **settings):
        files = RunFolder(tmp_path / "run")
        run_config = RunConfig(output=str(files.path), **{"max_steps": 8, **settings})
        checkpoint_folder(files.checkpoints, step).mkdir(parents=True)
        files.adapter.mkdir()
        (files.adapter / "adapter_config.json").write_text("{}")
        save_run_config(run_config, files.run_config)
        files.write_progress(8, 0, done=True, early_stop=early_stop, evals_without_better=num_worse)
        return run_config

    return make


def _asks(run_config, **changes):
    return describe_done(dataclasses.replace(run_config, **changes))


def test_a_run_that_is_done_says_how_it_is_extended(done):
    run_config = done()
    text = f"{run_config.output} is done: 8 steps. The same command with --max-steps above 8"
    assert _asks(run_config).startswith(text)
    assert _asks(run_config, save_every=3, micro_batch=2, patience=5).startswith(text)
    for changes in ({"max_steps": 9}, {"keep_best": True}, {"allow_changed_data": True}):
        assert _asks(run_config, **changes) == ""
    # The data say how many steps these are.
    assert _asks(run_config, max_steps=0, num_epochs=3) == ""
    RunFolder(Path(run_config.output)).write_progress(8, 0, done=False)
    assert _asks(run_config) == ""


def test_a_terminal_shows_in_whole_words_how_a_run_is_extended(done, monkeypatch):
    run_config = done(4, "after step 4 of 8: 2 evaluations in a row", 2, patience=2)
    text = _asks(run_config)
    monkeypatch.setattr(log, "shows_progress", lambda: True)
    monkeypatch.setattr(log, "terminal_columns", lambda: 100)
    shown, _, others = _asks(run_config).partition("\n  adapter ")
    assert " ".join(shown.split()) == text.partition("\n  adapter ")[0]
    assert others == text.partition("\n  adapter ")[2]
    rows = shown.split("\n")
    assert len(rows) > 1
    assert all(len(row) <= 100 for row in rows)


def test_a_run_that_is_done_names_the_commands_that_a_finished_one_does(done):
    run_config = done()
    text = _asks(run_config)
    assert text.endswith(describe_next(run_config, Path(run_config.output)))
    commands = [line.strip() for line in text.partition("Next:\n")[2].splitlines()]
    names = ["generate", "evaluate", "merge", "report", "inspect"]
    assert [command.split()[1] for command in commands[:5]] == names
    assert commands[5].startswith("tensorboard --logdir")


def test_passes_are_named_where_they_make_the_steps(done):
    assert "--num-epochs above 2.5 extends it" in _asks(done(max_steps=0, num_epochs=2.5))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"learning_rate": 1e-4},
            "come only; got learning_rate: 0.002 -> 0.0001, and all",
        ),
        ({"max_steps": 7}, "at least the 8 steps that it has taken; got 7 by max_steps: 8 -> 7"),
        ({"seed": 1}, "seed: 0, now 1"),
        ({"max_steps": 9, "patience": 2}, "patience=2, max_steps: 8 -> 9 .* above 3, or 0"),
    ],
)
def test_what_cannot_be_done_is_refused(changes, parts, done):
    run_config = done(num_worse=3, learning_rate=2e-3)
    with pytest.raises(UserError, match=parts):
        _asks(run_config, **changes)


@pytest.mark.parametrize("num_worse", [2, None])
def test_a_run_that_stopped_early_needs_more_patience(num_worse, done):
    run_config = done(4, "after step 4 of 8: 2 evaluations", num_worse, patience=2)
    text = "is done, stopped early after step 4 of 8: 2 evaluations. The same command with "
    for changes in ({}, {"patience": 1}):
        assert f"{text}--patience above 2, or 0, extends it" in _asks(run_config, **changes)
    for changes in ({"patience": 3}, {"patience": 0}, {"patience": 3, "learning_rate": 1e-4}):
        assert _asks(run_config, **changes) == ""
    with pytest.raises(UserError, match="outlast the 2 evaluations"):
        _asks(run_config, learning_rate=1e-4)


def test_a_run_without_checkpoints_is_not_started_over(done):
    run_config = done()
    checkpoint_folder(RunFolder(Path(run_config.output)).checkpoints, 8).rmdir()
    assert "is done: 8 steps" in _asks(run_config)
    with pytest.raises(UserError, match=r"must have its last checkpoint .* --init-adapter"):
        _asks(run_config, max_steps=9)


def test_the_command_answers_before_it_imports_torch(done):
    run_config = done()
    code = (
        "import sys; from diablo_ds.cli.main import main\n"
        f"main(['train', '--output', {run_config.output!r}], standalone_mode=False)\n"
        "print(sorted({'torch', 'numpy', 'deepspeed'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "is done: 8 steps" in result.stdout
    assert result.stdout.endswith("[]\n")
