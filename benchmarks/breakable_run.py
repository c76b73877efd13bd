"""A run that can be started, broken and started again, and what each fault did to it."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diablo_ds.adapter.storage import load_adapter
from diablo_ds.errors import UserError
from diablo_ds.files.layout import RunFolder, list_checkpoints
from diablo_ds.ranks.free_port import free_port
from diablo_ds.ranks.records import read_records
from diablo_ds.training.checkpoint import find_checkpoint

if TYPE_CHECKING:
    from tests.cluster.ssh import SshHosts

ROOT = Path(__file__).parents[1]
COMMAND = str(Path(sys.executable).with_name("diablo-ds"))
INJECTION = Path(__file__).parent / "injection"
ALL_GONE_S = 30.0
SAVE_EVERY = 3
MIN_HANG_TIMEOUT_S = 8
HANG_STEPS = 20
"""A rank counts as hung after this many times the longest step of the undisturbed run, as a busy
machine is no fault."""
START_TIMEOUT_S = 1800.0
MAX_STARTS = 3
"""Starts of a run that ends by itself before the fault, e.g. on a machine short of memory."""

Undo = Callable[[], object]
"""To be called once all processes of a broken run are gone."""


class BrokenOffError(RuntimeError):
    """The soak cannot continue: the run fails without a fault."""


@dataclass
class Outcome:
    """What a fault did."""

    kind: str
    phase: str = ""
    exit_code: int = 0
    seconds_to_end: float = 0.0
    saved_step: int = 0
    """Step of the last intact checkpoint after the fault."""
    resumed_step: int = 0
    """Step at which the next start continued."""
    problems: list[str] = field(default_factory=list)


@dataclass
class BreakableRun:
    """A run that can be started, broken and started again.

    Args:
        folder: for the model, the data and the runs; a file system that can be filled up.
        num_steps: steps of the run.
        seed: of the random moments.
        hosts: two ssh hosts, needed for faults on several hosts.
        all_gone_s: seconds within which every process must be gone after a fault.
    """

    folder: Path
    num_steps: int
    seed: int = 0
    hosts: SshHosts | None = None
    all_gone_s: float = ALL_GONE_S
    hang_timeout_s: int = 600
    """Set by `undisturbed`, from the time that a step takes here."""

    def __post_init__(self) -> None:
        """Make the model and the data."""
        from tests.tiny import save_model, write_pairs

        self.random = random.Random(self.seed)
        self.output = self.folder / "run"
        sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}
        self.model = save_model(self.folder / "model", **sizes)
        self.data = write_pairs(self.folder / "pairs.jsonl", 60)

    @property
    def log(self) -> Path:
        """The file with the output of all starts."""
        return self.folder / "launch.log"

    @property
    def wish(self) -> Path:
        """The file that asks a rank to end itself; see `benchmarks/injection`."""
        return self.folder / "wish"

    def start(self, output: Path, hosts: SshHosts | None = None) -> subprocess.Popen[bytes]:
        """Start or continue the run, always by the same command, here or on two hosts."""
        where = "--gpus-per-node 2"
        environment = {**os.environ, "PATH": f"{Path(COMMAND).parent}:{os.environ['PATH']}"}
        if hosts is not None:
            where = (
                f"--hostfile {hosts.hostfile()} --master-addr 127.0.0.2 --interface lo "
                f"--master-port {free_port()}"
            )
            environment = hosts.env
        command = (
            f"{COMMAND} launch {where} --skip-checks --env DS_ACCELERATOR=cpu "
            f"--env PYTHONPATH={INJECTION} --env DIABLO_FAULT_WISH={self.wish} "
            f"{self._options(output)}"
        )
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command.split(), cwd=ROOT, env=environment, stdout=log, stderr=log
            )

    def _options(self, output: Path) -> str:
        return (
            f"--model {self.model} --data {self.data} --output {output} --num-blocks 4 "
            f"--micro-batch 2 --global-batch 16 --max-steps {self.num_steps} --dropout 0.1 "
            f"--precision fp32 --save-every {SAVE_EVERY} --eval-every 10 --keep-last 3 "
            f"--hang-timeout {self.hang_timeout_s}"
        )

    def undisturbed(self) -> dict[str, Any]:
        """Return the deltas of a run that is left alone, on ranks without a launcher."""
        from tests.forked import ranks

        output = self.folder / "undisturbed"
        on_cpus = {"DS_ACCELERATOR": "cpu"}
        done = ranks(*self._options(output).split(), variables=on_cpus, check=False)
        if done.returncode != 0:
            raise BrokenOffError(f"undisturbed run must succeed; got\n{done.stdout}{done.stderr}")
        longest_s = max(point["step_s"] for point in _points(output) if "step_s" in point)
        self.hang_timeout_s = max(MIN_HANG_TIMEOUT_S, math.ceil(HANG_STEPS * longest_s))
        return load_adapter(output / "adapter")[0]

    # --- one fault -------------------------------------------------------------------------------

    def break_once(
        self,
        kind: str,
        fault: Callable[[BreakableRun, subprocess.Popen[bytes]], Undo],
        *,
        on_hosts: bool = False,
        may_hang: bool = False,
    ) -> Outcome:
        """Start the run, break it at a random moment, and look at what is left.

        Args:
            kind: name of the fault.
            fault: breaks the run, given it and the launcher's process.
            on_hosts: whether the run is on the two ssh hosts.
            may_hang: whether the fault is only noticed after the time-out for hanging ranks.
        """
        outcome = Outcome(kind)
        process, step, saved_before = self._start_until_it_trains(
            self.hosts if on_hosts else None, self.random.randint(1, SAVE_EVERY + 1)
        )
        outcome.resumed_step = step - 1
        if saved_before >= 0 and outcome.resumed_step != saved_before:
            outcome.problems.append(f"continued at {outcome.resumed_step}, not {saved_before}")
        time.sleep(self.random.uniform(0, 0.5))
        undo = fault(self, process)
        start = time.monotonic()
        try:
            outcome.exit_code = process.wait(timeout=self.all_gone_s + self.hang_timeout_s)
        except subprocess.TimeoutExpired:
            outcome.problems.append("the launcher did not end")
            process.kill()
        while (
            self._processes() and time.monotonic() - start < self.all_gone_s + self.hang_timeout_s
        ):
            time.sleep(0.1)
        outcome.seconds_to_end = time.monotonic() - start
        undo()
        if num_left := self.end_all():
            outcome.problems.append(f"{num_left} processes are left")
        limit = self.all_gone_s + (self.hang_timeout_s if may_hang else 0)
        if outcome.seconds_to_end > limit:
            outcome.problems.append(f"all gone only after {outcome.seconds_to_end:.0f} s")
        if outcome.exit_code == 0:
            outcome.problems.append("exit code 0")
        outcome.phase = self._last_phase()
        try:
            outcome.saved_step = self.last_saved()
        except UserError as error:
            outcome.problems.append(str(error))
        return outcome

    def _start_until_it_trains(
        self, hosts: SshHosts | None, count: int
    ) -> tuple[subprocess.Popen[bytes], int, int]:
        """Start the run and wait until it has taken ``count`` steps.

        A start that ends earlier is repeated: nothing was broken yet, so the machine was too busy,
        and the same command must be able to continue.

        Raises:
            BrokenOffError: if no start takes steps.
        """
        for _ in range(MAX_STARTS):
            saved_before = self.last_saved()
            process = self.start(self.output, hosts)
            if first := self._first_step(process, count):
                return process, first, saved_before
            code = process.wait()
            click.echo(f"a start ended with exit code {code} before it was broken; starting again")
        raise BrokenOffError(
            f"run must take steps; got none in {MAX_STARTS} starts; see {self.log}"
        )

    def _first_step(self, process: subprocess.Popen[bytes], count: int) -> int:
        """Wait until this start took ``count`` steps; return the first, or 0 if the start ended."""
        deadline = time.monotonic() + START_TIMEOUT_S
        first = 0
        previous = _steps(self.output)
        while process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
                return 0
            steps = _steps(self.output)
            if steps and steps != previous and not first:
                # The start truncates what came after the checkpoint and then adds its own.
                log = self.log.read_text(errors="replace")
                marker = log.rfind("Starting 2 ranks")
                resumed = log.rfind("Resuming after step ", marker)
                text = log[resumed:].split()[3] if resumed > marker else "0"
                first = int(text) + 1
            if first and steps and steps[-1] >= first + count - 1:
                return first
            time.sleep(0.02)
        return 0

    def last_saved(self) -> int:
        """Return the step of the last intact checkpoint, or -1."""
        root = RunFolder(self.output).checkpoints
        if not list_checkpoints(root):
            return -1
        found, _ = find_checkpoint(root)
        return -1 if found is None else int(found.name.removeprefix("step-"))

    def _last_phase(self) -> str:
        folders = sorted((self.output / "logs").iterdir())
        records = read_records(folders[-1])
        return next((r.phase for r in records if r.has_failed), records[0].phase if records else "")

    # --- processes -------------------------------------------------------------------------------

    def _processes(self) -> dict[int, str]:
        """Return the living processes of the run, by their command lines."""
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != os.getpid():
                with suppress(OSError):
                    text = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                    if str(self.output) in text and state != "Z":
                        found[int(folder.name)] = text
        return found

    def end_all(self) -> int:
        """Kill every process of the run that is still alive; return their number."""
        left = self._processes()
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(left)

    def pids(self, part: str) -> list[int]:
        """Return the processes whose command line contains a text."""
        return sorted(pid for pid, text in self._processes().items() if part in text)

    def signal_one(self, part: str, number: int) -> Undo:
        """Send a signal to a random process whose command line contains a text."""
        with suppress(ProcessLookupError):
            os.kill(self.random.choice(self.pids(part)), number)
        return lambda: None


def _points(output: Path) -> list[dict[str, Any]]:
    """Return what a run has recorded so far; nothing while a line is being written."""
    try:
        return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return []


def _steps(output: Path) -> list[int]:
    return [point["step"] for point in _points(output) if "loss" in point]
