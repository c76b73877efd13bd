"""A sweep on this machine: its runs one after the other, those that are done skipped."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diablo_ds.config.run import RunConfig
from diablo_ds.config.sweep import Axis, Combination
from diablo_ds.errors import UserError
from diablo_ds.files import owned
from diablo_ds.files.layout import SWEEP_FILE, Kind, kind_of
from diablo_ds.launcher.cluster import Cluster
from diablo_ds.launcher.launcher_output import say
from diablo_ds.launcher.quoting import bash_line
from diablo_ds.launcher.supervisor import RunEnd
from diablo_ds.launcher.sweep_report import (
    NOT_RUN,
    Result,
    read_result,
    sweep_table,
    write_sweep,
)
from diablo_ds.ranks.exit_codes import EXIT_STOPPED, EXIT_USER_ERROR
from diablo_ds.training import checking
from diablo_ds.training.extending import describe_done
from diablo_ds.training.next_commands import TENSORBOARD_NOTE
from diablo_ds.training.standing import DONE, RUNNING, STOPPED


@dataclass(frozen=True)
class SweptRun:
    """One run of a sweep, checked and ready to be started."""

    combination: Combination
    run_config: RunConfig
    """With its run folder, in the sweep's."""
    ds_config: Path

    @property
    def name(self) -> str:
        """Of the run and of its folder in the sweep's."""
        return self.combination.name

    def is_done(self) -> bool:
        """Return whether the run came to the end that is asked for."""
        return bool(describe_done(self.run_config))


def check_sweep_folder(root: Path) -> None:
    """Raise UserError where a folder is neither new, empty, nor that of a sweep."""
    kind = kind_of(root)
    if kind not in (Kind.NOTHING, Kind.EMPTY, Kind.SWEEP):
        raise UserError(
            "output of a sweep must be a folder that is new, empty or a sweep's; got "
            f"output={str(root)!r}, {kind.value}; choose another --output"
        )


def check_targets_of(runs: Sequence[SweptRun], cluster: Cluster) -> None:
    """Make sure that the base models have the targets and block counts of all runs to come.

    That is asked of the ranks' Python; where it has no answer, each run finds out by itself.

    Raises:
        UserError: if a run has none.
    """
    open_runs = [(run.name, run.run_config) for run in runs if not run.is_done()]
    if not open_runs:
        return
    say(f"Checking the targets and block counts of {len(open_runs)} runs ...")
    done = subprocess.run(
        [*cluster.python(), "-m", checking.MODULE],
        input=checking.runs_as_json(open_runs),
        env={**os.environ, **cluster.env, **cluster.hidden_env},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    if done.returncode == EXIT_USER_ERROR and done.stdout:
        raise UserError(done.stdout.strip())


class Sweep:
    """The runs of a sweep, and what they came to so far.

    Args:
        root: the sweep's folder.
        axes: what the sweep goes over.
        runs: in the order in which they are started.
        same_command: a line for a shell that continues the sweep.
    """

    def __init__(
        self, root: Path, axes: Sequence[Axis], runs: Sequence[SweptRun], same_command: str
    ) -> None:
        self.root, self.axes, self.runs, self.same_command = root, axes, runs, same_command
        self._statuses = {run.name: DONE if run.is_done() else NOT_RUN for run in runs}
        self._codes: dict[str, int] = {}

    def run(self, start: Callable[[SweptRun], RunEnd]) -> int:
        """Start every run that is not done, print and write the table, and return an exit code.

        A run that fails is reported, and the next one starts. A request to stop ends the sweep.

        Args:
            start: starts a run and waits for its end.

        Returns:
            0 where all runs are done, `EXIT_STOPPED` where the sweep was stopped, otherwise
            `EXIT_USER_ERROR` where every failure is one of input, or 1.
        """
        owned.make_folder(self.root, "sweep folder")
        self._write()
        is_stopped = False
        for number, run in enumerate(self.runs, start=1):
            head = f"Sweep, run {number} of {len(self.runs)}: {run.name}"
            if self._statuses[run.name] == DONE:
                say(f"{head} is done already.")
                continue
            say(f"\n{head}")
            self._statuses[run.name] = RUNNING
            self._write()
            is_stopped = self._start(run, start)
            self._write()
            if is_stopped:
                break
        is_stopped = is_stopped and set(self._statuses.values()) != {DONE}
        self._report(is_stopped=is_stopped)
        if is_stopped:
            return EXIT_STOPPED
        codes = set(self._codes.values()) - {0}
        return 0 if not codes else EXIT_USER_ERROR if codes == {EXIT_USER_ERROR} else 1

    def results(self) -> list[Result]:
        """Return what every run came to so far."""
        return [
            read_result(
                self.root,
                run.name,
                dict(zip((axis.title for axis in self.axes), run.combination.shown, strict=True)),
                self._statuses[run.name],
                exit_code=self._codes.get(run.name),
                keeps_best=run.run_config.keep_best,
            )
            for run in self.runs
        ]

    def _start(self, run: SweptRun, start: Callable[[SweptRun], RunEnd]) -> bool:
        """Start one run and note its end; return whether the sweep is to stop."""
        try:
            end = start(run)
        except KeyboardInterrupt:
            end = RunEnd(EXIT_STOPPED, was_asked=True)
        except (UserError, OSError) as error:
            say(f"Error: {error}")
            end = RunEnd(EXIT_USER_ERROR if isinstance(error, UserError) else 1)
        self._codes[run.name] = end.exit_code
        is_stopped = end.was_asked or end.exit_code == EXIT_STOPPED
        if end.exit_code == 0:
            self._statuses[run.name] = DONE
        elif is_stopped:
            self._statuses[run.name] = STOPPED
        else:
            self._statuses[run.name] = f"failed, exit code {end.exit_code}"
            say(f"Sweep: {run.name} failed with exit code {end.exit_code}; the others go on.")
        return is_stopped

    def _write(self) -> None:
        write_sweep(self.root, self.same_command, self.results())

    def _report(self, *, is_stopped: bool) -> None:
        results = self.results()
        say(f"\n{sweep_table(self.root, results)}")
        num_done = sum(result.is_done for result in results)
        count = f"{num_done} of {len(results)} runs are done"
        if is_stopped:
            say(f"The sweep was stopped; {count}. It continues with:\n  {self.same_command}")
        elif num_done < len(results):
            say(
                f"Error: {count}; the others failed, each with logs in its folder. After a repair, "
                f"this runs them again:\n  {self.same_command}"
            )
        say(f"  table        {self.root / SWEEP_FILE}")
        command = bash_line(["tensorboard", "--logdir", str(self.root)])
        say(f"  compare      {command}\n               {TENSORBOARD_NOTE}")
