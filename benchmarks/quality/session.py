"""One call of the command: sizes that fit the budget, the trainings, and how to continue."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from types import FrameType

import click
import torch

from benchmarks.quality.arms import Findings
from benchmarks.quality.parts import TITLES, data_of, describe, wanted_of_all
from benchmarks.quality.progress import duration
from benchmarks.quality.records import FILE, Record, Records, read_records
from benchmarks.quality.scheduling import BrokenStudyError, Scheduler
from benchmarks.quality.settings import save_study
from benchmarks.quality.sizes import Estimates, calibration, fitting_amounts
from benchmarks.quality.study import Study
from benchmarks.quality.workers import Message, Worker
from diablo_ds.errors import UserError
from diablo_ds.ranks.free_memory import free_bytes

CALIBRATION = "calibration"
WORKER_BYTES = 5 << 30
"""Memory of a worker that trains every one of 135M parameters in fp32: 4.3 GB were measured."""
_LISTED = 12


def check_data(study: Study, parts: Sequence[str], sources: Mapping[str, Path]) -> None:
    """Raise UserError unless the data of the parts are there."""
    for name in dict.fromkeys(data_of(part, study) for part in parts):
        if not sources[name].is_dir():
            needing = ", ".join(part for part in parts if data_of(part, study) == name)
            raise UserError(
                f"the data must be a folder; got --{name} {sources[name]}, which is none and which "
                f"these parts need: {needing}"
            )


@dataclass(frozen=True)
class Session:
    """One call.

    Args:
        output: the folder of records.
        study: its settings.
        parts: names, in order of value.
        budget_s: seconds that this call may train.
        sources: folders of the data by kind.
        workers: trainings at the same time; 0 for the default of the device.
        is_sized: whether the study's amounts are kept; otherwise they are fitted to the budget.
        fixed: amounts that are not.
    """

    output: Path
    study: Study
    parts: Sequence[str]
    budget_s: float
    sources: Mapping[str, str]
    workers: int
    is_sized: bool
    fixed: Mapping[str, int]

    @property
    def num_workers(self) -> int:
        """Trainings at the same time: on a CPU one per core, as threads wait for each other."""
        if self.workers or self.study.device != "cpu":
            return self.workers or 1
        fitting = free_bytes(torch.device("cpu")) // WORKER_BYTES
        return max(1, min(len(os.sched_getaffinity(0)), fitting))

    def plan(self) -> str:
        """Return what is left to train, in words, with its expected time."""
        has_records = (self.output / FILE).is_file()
        records: list[Record] = read_records(self.output) if has_records else []
        findings = Findings(records, self.study.device)
        estimates = Estimates(findings)
        study = self.study if self.is_sized else self._fitted(self.study, estimates)
        left = wanted_of_all(self.parts, study, findings)
        seconds = {spec: estimates.seconds(spec) for _, spec in left}
        lines = [self._sizes_in_words(study)]
        if not findings.records:
            lines.append("Times are guesses: nothing was measured on this machine yet.")
        for part in self.parts:
            own = [spec for name, spec in left if name == part]
            part_s = fsum(seconds[spec] for spec in own) / self.num_workers
            lines.append(f"\n{part}: {TITLES[part]}, {len(own)} trainings, {duration(part_s)}")
            lines += [f"  {duration(seconds[spec]):>8}  {describe(spec)}" for spec in own[:_LISTED]]
            if len(own) > _LISTED:
                lines.append(f"            and {len(own) - _LISTED} more")
        total_s = fsum(seconds.values()) / self.num_workers
        lines.append(
            f"\nIn all {len(left)} trainings, {duration(total_s)}; the budget of this call is "
            f"{duration(self.budget_s)}. Searches go on until a best rate is inside, so that there "
            "may be more."
        )
        return "\n".join(lines)

    def run(self, *, retry_failed: bool) -> int:
        """Train what fits the budget; return the exit code."""
        with Records(self.output) as records, _stop_signals():
            if records.num_dropped_bytes:
                _say(
                    f"The last line of {records.path} was damaged and was dropped: "
                    f"{records.num_dropped_bytes:,} bytes."
                )
            retried = len(records.all) if retry_failed else 0
            findings = Findings(records.all, self.study.device, retried=retried)
            scheduler = Scheduler(
                self.study, records, findings, self._start_worker, self.num_workers, self.budget_s
            )
            try:
                return self._train(scheduler, findings)
            except KeyboardInterrupt:
                _say(f"Stopped. What has ended is kept. To continue: {_command()}")
                return 130
            except BrokenStudyError as error:
                _say(f"Error: {error}\nOnce that is mended: {_command('--retry-failed')}")
                return 1
            finally:
                scheduler.close()

    def _train(self, scheduler: Scheduler, findings: Findings) -> int:
        study = self.study
        if not self.is_sized:
            _say("Measuring how fast this machine is, in two short trainings.")
            # A first, short training brings libraries and data into the caches; the second counts.
            for spec in calibration(study):
                scheduler.train_one(CALIBRATION, spec)
            study = self._fitted(study, Estimates(findings))
            scheduler.study = study
        save_study(self.output, study)
        _say(self._sizes_in_words(study))
        if scheduler.train_parts(self.parts):
            _say("Nothing is left to train.")
        else:
            _say(f"The budget of this call has ended. To continue: {_command()}")
        return 0

    def _fitted(self, study: Study, estimates: Estimates) -> Study:
        seconds = self.budget_s * self.num_workers
        fitting = fitting_amounts(study, self.parts, estimates, seconds, self.fixed)
        return dataclasses.replace(study, amounts=fitting)

    def _start_worker(self, slot: int, messages: queue.Queue[Message]) -> Worker:
        threads = 0
        if self.study.device == "cpu":
            threads = max(1, len(os.sched_getaffinity(0)) // self.num_workers)
        folder = self.output.absolute() / "data"
        settings = {**self.sources, "cache_folder": str(folder), "num_threads": threads}
        command = [sys.executable, "-m", "benchmarks.quality.runs", json.dumps(settings)]
        variables = {"TOKENIZERS_PARALLELISM": "false"}
        if threads:
            variables |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(threads)}
        return Worker(command, self.output / f"worker-{slot}.log", messages, variables)

    def _sizes_in_words(self, study: Study) -> str:
        amounts = study.amounts
        return (
            f"{study.device}, {study.precision}, {self.num_workers} at a time: "
            f"{amounts.num_examples:,} training examples per training, {amounts.batch_examples:,} "
            f"for batch sizes, {amounts.final_examples:,} for GSM8K, {amounts.num_seeds} seeds."
        )


@contextlib.contextmanager
def _stop_signals() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, inside the block."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _command(*more: str) -> str:
    words = [word for word in sys.argv[1:] if word not in more]
    return shlex.join(["python", "-m", "benchmarks.quality", *words, *more])


def _say(text: str) -> None:
    click.echo(text, err=True)
