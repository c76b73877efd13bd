"""A run that goes on: what changes for its steps to come, and whether any are left.

The rule: a step is taken by the settings of the start that takes it. Learning-rate schedules are
functions of the step and of the number of steps, so from an extension on the rate is that of a run
which had its settings from the first step on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diablo_ds.config.continuation import changes_ahead
from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import load_recorded
from diablo_ds.config.schedule import learning_rate
from diablo_ds.config.setting import option_name
from diablo_ds.config.starts import Change
from diablo_ds.errors import UserError
from diablo_ds.files.layout import RunFolder, list_checkpoints, step_of
from diablo_ds.ranks.log import in_rows
from diablo_ds.training.metrics_file import RecentPoints
from diablo_ds.training.next_commands import describe_next
from diablo_ds.training.run_folder import check_run_folder

LENGTH = ("num_epochs", "max_steps")
"""Settings that say how many steps a run has."""


def describe_done(run_config: RunConfig) -> str:
    """Say that a run is done as it is asked for; return nothing where a start has something to do.

    Reads small files of the run folder only. With `allow_changed_data` the data decide, which are
    not read here.

    Raises:
        UserError: if the folder holds another run, or a run that cannot be extended in this way.
    """
    folder = Path(run_config.output)
    files = RunFolder(folder)
    has_run = bool(run_config.output) and files.run_config.is_file() and files.is_done()
    if not has_run or run_config.allow_changed_data:
        return ""
    check_run_folder(run_config)
    recorded = load_recorded(files.run_config)
    changes = changes_ahead(recorded, run_config)
    is_early, num_worse = bool(files.early_stop()), _num_without_better(files, recorded)
    is_out_of_patience = 0 < run_config.patience <= num_worse
    if changes:
        _check_changes(run_config, changes, files, is_early=is_early)
        if is_out_of_patience:
            raise UserError(
                f"patience must outlast the {num_worse} evaluations without a lower held-out loss "
                f"that the run has behind it; got patience={run_config.patience}, {_text(changes)} "
                f"in {folder}; give a --patience above {num_worse}, or 0"
            )
    is_finished = is_out_of_patience if is_early else not changes
    if not is_finished or run_config.keep_best != recorded.keep_best:
        return ""
    return _done_text(recorded, files, num_worse)


def check_effect(changes: Sequence[Change], step: int, num_steps: int) -> None:
    """Raise UserError where settings change for the steps to come, and there are none.

    Args:
        changes: what changes.
        step: steps that were taken.
        num_steps: steps of the run.
    """
    without_effect = [change for change in changes if change.field not in LENGTH]
    if without_effect and step >= num_steps:
        raise UserError(
            "settings can change for steps to come only; got "
            f"{_text(without_effect)}, and all {num_steps} steps of the run are taken; give more "
            "--max-steps or --num-epochs too"
        )


def check_length(changes: Sequence[Change], step: int, num_steps: int) -> None:
    """Raise UserError where a run is given fewer steps than it has taken.

    Args:
        changes: what changes.
        step: steps that were taken.
        num_steps: steps that the run is to have.
    """
    of_length = [change for change in changes if change.field in LENGTH]
    if of_length and num_steps < step:
        raise UserError(
            f"a run must have at least the {step} steps that it has taken; got {num_steps} by "
            f"{_text(of_length)}; give more, or another --output for a new run"
        )


def describe_changes(
    changes: Sequence[Change], run_config: RunConfig, folder: Path, *, step: int, num_steps: int
) -> str:
    """Return what changes for the steps to come, and what becomes of the learning rate.

    Args:
        changes: what changes, at least one setting.
        run_config: the run config from now on.
        folder: the run folder.
        step: steps that were taken.
        num_steps: steps of the run from now on.
    """
    points = RecentPoints(RunFolder(folder).metrics, step).read()
    before = [p["learning_rate"] for p in points if p["step"] == step and "learning_rate" in p]
    rates = [f"{rate:.3g} in step {step}" for rate in before[-1:]]
    rates += [
        f"{learning_rate(run_config, number - 1, num_steps):.3g} in step {number}"
        for number in dict.fromkeys((step + 1, num_steps))
        if number <= num_steps
    ]
    return f"Changed after step {step}: {_text(changes)}\nLearning rate: {', '.join(rates)}"


def _check_changes(
    run_config: RunConfig, changes: Sequence[Change], files: RunFolder, *, is_early: bool
) -> None:
    """Check that a run that is done can take more steps, and what changes for them."""
    checkpoints = list_checkpoints(files.checkpoints)
    if not checkpoints:
        raise UserError(
            f"a run must have its last checkpoint to be extended; got none in {files.checkpoints}, "
            f"and {_text(changes)}; a new run goes on from its adapter with another --output and "
            f"--init-adapter {files.path}"
        )
    step, num_steps = step_of(checkpoints[0]), files.num_steps()
    if run_config.max_steps:
        num_steps = run_config.max_steps
        check_length(changes, step, num_steps)
    elif any(change.field in LENGTH for change in changes):  # which the data decide
        return
    if not is_early and num_steps is not None:
        check_effect(changes, step, num_steps)


def _num_without_better(files: RunFolder, recorded: RunConfig) -> int:
    """Return how many evaluations in a row brought no lower loss when the run was done."""
    number = files.evals_without_better()
    if number is None:  # an early version did not write it
        return recorded.patience if files.early_stop() else 0
    return number


def _done_text(recorded: RunConfig, files: RunFolder, num_worse: int) -> str:
    if early_stop := files.early_stop():
        how = f"--patience above {num_worse}, or 0,"
        done = f"{files.path} is done, stopped early {early_stop}."
    else:
        name = "max_steps" if recorded.max_steps else "num_epochs"
        how = f"{option_name(name)} above {getattr(recorded, name):g}"
        done = f"{files.path} is done: {files.num_steps()} steps."
    return (
        f"{in_rows(f'{done} The same command with {how} extends it.')}\n"
        f"  adapter      {files.adapter}\n"
        f"{describe_next(recorded, files.path)}"
    )


def _text(changes: Sequence[Change]) -> str:
    return ", ".join(change.text() for change in changes)
