"""Soak: break a run again and again, start it with the same command, and compare the end.

    python -m benchmarks.faults --faults 40

A small random model trains under ZeRO-3 on two ranks. Each fault hits at a random moment, or at one
in a given phase of a step. After it every process must be gone within 30 s, the exit code must not
be 0, and the last whole checkpoint must still be whole. The run that was broken many times has to
end with exactly the deltas of one that was left alone.

Ranks are on this machine, but for "lose a host": there the same run is on two hosts that ssh
reaches, and everything on one of them dies at once.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diablo_ds.adapter.storage import load_adapter
from diablo_ds.files.layout import RunFolder, list_checkpoints
from diablo_ds.ranks.records import read_records
from diablo_ds.training.checkpoint import find_checkpoint

if TYPE_CHECKING:
    from tests.cluster.ssh import SshHosts

COMMAND = str(Path(sys.executable).with_name("diablo-ds"))
ALL_GONE_S = 30.0
SAVE_EVERY = 3
LEAST_HANG_TIMEOUT_S = 8
HANG_STEPS = 20
"""A rank counts as hung after as many of the undisturbed run's longest steps: a busy machine is no
fault."""
START_TIMEOUT_S = 1800.0
TRIES = 3
"""Starts of a run that ends by itself before the fault, on a machine that is short of something."""
INJECTION = Path(__file__).parent / "injection"
LOSE_HOST = "lose a host"


class BrokenOffError(RuntimeError):
    """The soak cannot go on: the run fails without a fault."""


@dataclass
class Outcome:
    """What a fault did."""

    kind: str
    phase: str = ""
    exit_code: int = 0
    seconds_to_end: float = 0.0
    saved_step: int = 0
    """Last whole checkpoint after the fault."""
    resumed_step: int = 0
    """Where the next start went on."""
    problems: list[str] = field(default_factory=list)


@dataclass
class Bench:
    """A run that can be started, broken and started again.

    Args:
        folder: for the model, the data and the runs; a file system that can be filled up.
        num_steps: steps of the run.
        seed: of the random moments.
        hosts: two ssh hosts, or none; needed for the fault "lose a host".
        all_gone_s: seconds within which every process has to be gone after a fault.
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
        self.model = save_model(
            self.folder / "model", hidden_size=128, intermediate_size=512, num_hidden_layers=4
        )
        self.data = write_pairs(self.folder / "pairs.jsonl", 60)

    @property
    def log(self) -> Path:
        """Return the file with the output of all starts."""
        return self.folder / "launch.log"

    @property
    def wish(self) -> Path:
        """Return the file by which a rank is asked to end itself; see `benchmarks/injection`."""
        return self.folder / "wish"

    def start(self, output: Path, hosts: SshHosts | None = None) -> subprocess.Popen[bytes]:
        """Start the run, or go on with it: always the same command, here or on two hosts."""
        where = "--gpus-per-node 2"
        environment = {**os.environ, "PATH": f"{Path(COMMAND).parent}:{os.environ['PATH']}"}
        if hosts is not None:
            from tests.e2e.commands import free_port

            where = (
                f"--hostfile {hosts.hostfile()} --master-addr 127.0.0.2 --interface lo "
                f"--master-port {free_port()}"
            )
            environment = hosts.env
        command = (
            f"{COMMAND} launch {where} --skip-checks --env DS_ACCELERATOR=cpu "
            f"--env PYTHONPATH={INJECTION} --env DIABLO_FAULT_WISH={self.wish} "
            f"--model {self.model} --data {self.data} --output {output} --num-blocks 4 "
            f"--micro-batch 2 --global-batch 16 --max-steps {self.num_steps} --dropout 0.1 "
            f"--precision fp32 --save-every {SAVE_EVERY} --eval-every 10 --keep-last 3 "
            f"--hang-timeout {self.hang_timeout_s}"
        )
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command.split(),
                cwd=Path(__file__).parents[1],
                env=environment,
                stdout=log,
                stderr=log,
            )

    def undisturbed(self) -> dict[str, Any]:
        """Return the deltas of a run that is left alone."""
        output = self.folder / "undisturbed"
        if self.start(output).wait() != 0:
            raise BrokenOffError(f"undisturbed run must end well; see {self.log}")
        longest_s = max(point["step_s"] for point in _points(output) if "step_s" in point)
        self.hang_timeout_s = max(LEAST_HANG_TIMEOUT_S, math.ceil(HANG_STEPS * longest_s))
        return load_adapter(output / "adapter")[0]

    # --- one fault -------------------------------------------------------------------------------

    def break_once(self, kind: str) -> Outcome:
        """Start the run, break it at a random moment, and look at what is left."""
        outcome = Outcome(kind)
        process, step, saved_before = self._start_until_it_trains(
            self.hosts if kind == LOSE_HOST else None, self.random.randint(1, SAVE_EVERY + 1)
        )
        outcome.resumed_step = step - 1
        if saved_before >= 0 and outcome.resumed_step != saved_before:
            outcome.problems.append(f"went on at {outcome.resumed_step}, not {saved_before}")
        time.sleep(self.random.uniform(0, 0.5))
        undo = FAULTS[kind](self, process)
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
        limit = self.all_gone_s + (self.hang_timeout_s if kind == "stop a rank" else 0)
        if outcome.seconds_to_end > limit:
            outcome.problems.append(f"all gone after {outcome.seconds_to_end:.0f} s only")
        if outcome.exit_code == 0:
            outcome.problems.append("exit code 0")
        outcome.phase = self._last_phase()
        try:
            outcome.saved_step = self._last_saved()
        except ValueError as error:
            outcome.problems.append(str(error))
        return outcome

    def _start_until_it_trains(
        self, hosts: SshHosts | None, count: int
    ) -> tuple[subprocess.Popen[bytes], int, int]:
        """Start the run and wait until it has taken ``count`` steps.

        A start that ends before is repeated: nothing was broken yet, so the machine was too busy,
        and the same command has to go on all the same.

        Raises:
            BrokenOffError: if no start takes steps.
        """
        for _ in range(TRIES):
            saved_before = self._last_saved()
            process = self.start(self.output, hosts)
            if first := self._first_step(process, count):
                return process, first, saved_before
            code = process.wait()
            click.echo(f"a start ended with exit code {code} before it was broken; again")
        raise BrokenOffError(f"run must take steps; got none in {TRIES} starts; see {self.log}")

    def _first_step(self, process: subprocess.Popen[bytes], count: int) -> int:
        """Wait until this start took ``count`` steps; return the first, 0 where the start ended."""
        deadline = time.monotonic() + START_TIMEOUT_S
        first = 0
        previous = _steps(self.output)
        while process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
                return 0
            steps = _steps(self.output)
            if steps and steps != previous and not first:
                # The start cuts off what came after the checkpoint and then adds its own.
                log = self.log.read_text(errors="replace")
                marker = log.rfind("Starting 2 ranks")
                resumed = log.rfind("Resuming after step ", marker)
                text = log[resumed:].split()[3] if resumed > marker else "0"
                first = int(text) + 1
            if first and steps and steps[-1] >= first + count - 1:
                return first
            time.sleep(0.02)
        return 0

    def _last_saved(self) -> int:
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
        """Kill every process of the run that still lives; return how many there were."""
        left = self._processes()
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(left)

    def pids(self, part: str) -> list[int]:
        """Return the processes with some text in their command line."""
        return sorted(pid for pid, text in self._processes().items() if part in text)

    def signal_one(self, part: str, number: int) -> Callable[[], None]:
        """Send a signal to a random process with some text in its command line."""
        with suppress(ProcessLookupError):
            os.kill(self.random.choice(self.pids(part)), number)
        return lambda: None


def _points(output: Path) -> list[dict[str, Any]]:
    """Return what a run has recorded so far; nothing while a line is half written."""
    try:
        return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return []


def _steps(output: Path) -> list[int]:
    return [point["step"] for point in _points(output) if "loss" in point]


# --- the faults ----------------------------------------------------------------------------------

_RANK, _GUARD, _RUNNER, _AGENT = "-m diablo_ds train", "launch/train.py", "/deepspeed ", ".launch "


def _kill_rank(bench: Bench, process: subprocess.Popen[bytes]) -> Callable[[], None]:
    return bench.signal_one(_RANK, signal.SIGKILL)


def _kill_rank_in(phase: str) -> Callable[..., Callable[[], None]]:
    """Return a fault that has a rank die by SIGKILL at a random moment of a phase."""

    def fault(bench: Bench, process: subprocess.Popen[bytes]) -> Callable[[], None]:
        rank, delay_s = bench.random.randrange(2), bench.random.uniform(0, 0.008)
        half_written = bench.wish.with_suffix(".tmp")
        half_written.write_text(f"{phase} {rank} {delay_s}")
        half_written.rename(bench.wish)
        return lambda: bench.wish.unlink(missing_ok=True)

    return fault


def _lose_host(bench: Bench, process: subprocess.Popen[bytes]) -> Callable[[], None]:
    assert bench.hosts is not None
    hosts, name = bench.hosts, bench.random.choice(sorted(bench.hosts.servers))
    hosts.stop_host(name)
    return lambda: hosts.start_host(name)


def _kill_guard(bench: Bench, process: subprocess.Popen[bytes]) -> Callable[[], None]:
    guards = set(bench.pids(_GUARD)) - set(bench.pids(".launch ")) - set(bench.pids(_RUNNER))
    with suppress(ProcessLookupError):
        os.kill(bench.random.choice(sorted(guards)), signal.SIGKILL)
    return lambda: None


def _terminate_runner(bench: Bench, process: subprocess.Popen[bytes]) -> Callable[[], None]:
    return bench.signal_one(_RUNNER, signal.SIGTERM)


def _kill_agent(bench: Bench, process: subprocess.Popen[bytes]) -> Callable[[], None]:
    return bench.signal_one("deepspeed.launcher.launch", signal.SIGKILL)


def _terminate_launcher(bench: Bench, process: subprocess.Popen[bytes]) -> Callable[[], None]:
    process.send_signal(signal.SIGTERM)
    return lambda: None


def _kill_launcher(bench: Bench, process: subprocess.Popen[bytes]) -> Callable[[], None]:
    process.kill()
    return lambda: None


def _stop_rank(bench: Bench, process: subprocess.Popen[bytes]) -> Callable[[], None]:
    return bench.signal_one(_RANK, signal.SIGSTOP)


def _fill_disk(bench: Bench, process: subprocess.Popen[bytes]) -> Callable[[], None]:
    filler = bench.folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    return filler.unlink


def _damage(change: Callable[[bytes], bytes]) -> Callable[..., Callable[[], None]]:
    """Return a fault that kills a rank, and damages the last checkpoint once all is gone."""

    def fault(bench: Bench, process: subprocess.Popen[bytes]) -> Callable[[], None]:
        bench.signal_one(_RANK, signal.SIGKILL)

        def damage() -> None:
            checkpoints = list_checkpoints(RunFolder(bench.output).checkpoints)
            if len(checkpoints) > 1:
                file = checkpoints[0] / bench.random.choice(
                    ["adapter.safetensors", "optimizer.safetensors", "state.json"]
                )
                file.write_bytes(change(file.read_bytes()))

        return damage

    return fault


def _truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


FAULTS: dict[str, Callable[[Bench, subprocess.Popen[bytes]], Callable[[], None]]] = {
    "kill a rank": _kill_rank,
    "kill a rank in forward": _kill_rank_in("forward"),
    "kill a rank in backward": _kill_rank_in("backward"),
    "kill a rank in the update": _kill_rank_in("update"),
    "kill a rank while saving": _kill_rank_in("saving"),
    "kill a guard": _kill_guard,
    "terminate deepspeed": _terminate_runner,
    "kill deepspeed's agent": _kill_agent,
    "terminate the launcher": _terminate_launcher,
    "kill the launcher": _kill_launcher,
    "stop a rank": _stop_rank,
    "fill the disk": _fill_disk,
    "truncate a checkpoint": _damage(_truncate),
    "flip a bit of a checkpoint": _damage(_flip_bit),
    LOSE_HOST: _lose_host,
}
"""Each breaks the run and returns what to do once all its processes are gone."""


def soak(bench: Bench, kinds: Sequence[str]) -> tuple[list[Outcome], list[str]]:
    """Break the run once by each kind, finish it, and compare with the undisturbed one.

    Returns:
        The outcomes, and what was wrong at the end.
    """
    expected = bench.undisturbed()
    outcomes: list[Outcome] = []
    for number, kind in enumerate(kinds, 1):
        if bench._last_saved() >= bench.num_steps - 2 * SAVE_EVERY:
            outcomes[-1].problems += finish(bench, expected)
            shutil.rmtree(bench.output)
        outcome = bench.break_once(kind)
        outcomes.append(outcome)
        problems = "; ".join(outcome.problems) or "survived"
        text = f"{number}/{len(kinds)} {kind}, in {outcome.phase}: {problems}"
        click.echo(f"{text}; exit code {outcome.exit_code}, {outcome.seconds_to_end:.1f} s")
    return outcomes, finish(bench, expected)


def finish(bench: Bench, expected: dict[str, Any]) -> list[str]:
    """Start the run a last time, let it end, and compare its deltas."""
    code = bench.start(bench.output).wait()
    if code:
        return [f"the last start ended with exit code {code}"]
    deltas = load_adapter(bench.output / "adapter")[0]
    different = [name for name in expected if not bool((deltas[name] == expected[name]).all())]
    return [f"{len(different)} deltas differ from the undisturbed run's"] if different else []


# --- the report ----------------------------------------------------------------------------------


@click.command()
@click.option("--faults", default=45, show_default=True, help="Faults to make.")
@click.option("--steps", default=60, show_default=True, help="Steps of a run.")
@click.option("--seed", default=0, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Small file system to fill up.")
@click.option("--keep", is_flag=True, help="Keep the folder.")
def main(faults: int, steps: int, seed: int, folder: Path | None, keep: bool) -> None:
    """Break, restart, compare, and write the report."""
    from tests.cluster.ssh import SshHosts

    where = folder or Path(tempfile.mkdtemp(prefix="diablo-faults-"))
    with SshHosts(Path(tempfile.mkdtemp(prefix="diablo-hosts-"))) as hosts:
        bench = Bench(where, steps, seed, hosts)
        try:
            is_good = _run(bench, faults, has_small_disk=folder is not None)
        except BrokenOffError as error:
            bench.end_all()
            raise click.ClickException(str(error)) from None
    if not keep and folder is None:
        shutil.rmtree(where)
    sys.exit(0 if is_good else 1)


def _run(bench: Bench, faults: int, *, has_small_disk: bool) -> bool:
    """Make the faults and write the report; return whether all were survived."""
    from benchmarks.report import table, write_report

    kinds = [name for name in FAULTS if has_small_disk or name != "fill the disk"]
    order = [kinds[index % len(kinds)] for index in range(faults)]
    bench.random.shuffle(order)
    start = time.monotonic()
    outcomes, problems = soak(bench, order)
    survived = sum(not outcome.problems for outcome in outcomes)
    rows = []
    for kind in kinds:
        mine = [outcome for outcome in outcomes if outcome.kind == kind]
        if mine:
            seconds = [outcome.seconds_to_end for outcome in mine]
            good = sum(not outcome.problems for outcome in mine)
            codes = ", ".join(map(str, sorted({outcome.exit_code for outcome in mine})))
            rows.append((kind, str(len(mine)), str(good), codes, f"{max(seconds):.1f} s"))
    phases = Counter(o.phase.split(" of ")[0] for o in outcomes if "kill a rank" in o.kind)
    text = (
        f"{len(outcomes)} faults in {time.monotonic() - start:.0f} s on a run of two ranks under "
        f"ZeRO-3; {survived} survived. After the last, the deltas were "
        f"{'exactly those of an undisturbed run' if not problems else '; '.join(problems)}. Each "
        "start went on at the last whole checkpoint, so no step was lost beyond it.\n\n"
        + table(("fault", "made", "survived", "exit codes", "all gone after, at most"), rows)
        + "\n\nPhases in which ranks were killed: "
        + ", ".join(f"{phase} {count}" for phase, count in phases.most_common())
        + "."
    )
    figures = {"outcomes": [asdict(outcome) for outcome in outcomes], "end": problems}
    write_report("faults", "Faults survived", figures, text, "cpu")
    return survived == len(outcomes) and not problems


if __name__ == "__main__":
    main()
