"""Starts a run and stays with it: output, the first error, an end for all ranks, restarts."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

import click

from diablo_ds.config.batch_resolution import resolve_batch
from diablo_ds.config.run import RunConfig
from diablo_ds.config.words import shell_text
from diablo_ds.errors import UserError
from diablo_ds.files import trust
from diablo_ds.files.atomic import write_text
from diablo_ds.launcher.cluster import SSH_RUNNERS, Cluster, Host, hostfile_text
from diablo_ds.launcher.guard import PEER_GRACE_S
from diablo_ds.launcher.hosts import reachable_hosts
from diablo_ds.launcher.ports import PORT_TRIES
from diablo_ds.launcher.starting import Start, prepared_start
from diablo_ds.ranks.exit_codes import EXIT_PORT_IN_USE, EXIT_STOPPED, EXIT_USER_ERROR
from diablo_ds.ranks.records import (
    FAILED_FILE,
    STOP_FILE,
    STOP_GRACE_S,
    RankRecord,
    describe_failure,
    first_failure,
    read_records,
    record_file,
)

POLL_S = 0.2
MARGIN_S = 4.0
"""What a guard may need beyond its grace to see the end and write it down."""
RESTART_DELAY_S = 2.0
HOLD_S = 8.0
MAX_LINE_BYTES = 1 << 16
_LAUNCHER_NOISE = (
    *("[INFO] [launch.py", "[INFO] [runner.py", "[INFO] [multinode_runner.py"),
    *("Unable to find hostfile", "Setting accelerator to CPU"),
)
_ERROR_SIGNS = ("Traceback (most recent call last)", "[ERROR]", "terminate called after")


def run_until_done(
    run: RunConfig,
    ds_config: Path,
    cluster: Cluster,
    logs: Path,
    *,
    max_restarts: int,
    min_nodes: int,
) -> int:
    """Run to the end, restarting after failures, and return the exit code.

    A restart goes on from the last checkpoint. Where hosts are gone, it uses those that are left,
    if they are at least ``min_nodes``: the global batch stays, accumulation adjusts. Each start has
    a log folder of its own in ``logs``.

    Raises:
        UserError: if the run and the cluster do not go together.
    """
    restarts = port_tries = 0
    while True:
        for path, what in ((Path(run.output), "run folder"), (logs, "log folder")):
            trust.make_folder(path, what, shared=run.shared_folders)
        folder = make_log_folder(logs, cluster)
        trust.make_folder(folder, "log folder", shared=run.shared_folders)
        attempt = Attempt(cluster, folder)
        with attempt.signals(), prepared_start(run, ds_config, cluster, folder) as start:
            code = attempt.run(start)
        if not attempt.is_worth_a_restart(code):
            return code
        if code == EXIT_PORT_IN_USE and port_tries < PORT_TRIES:
            port_tries += 1
            click.echo("The master port was taken meanwhile; starting again.", err=True)
        elif restarts < max_restarts:
            restarts += 1
            click.echo(f"Restart {restarts} of {max_restarts}, from the last checkpoint.", err=True)
        else:
            return code
        time.sleep(RESTART_DELAY_S)
        if cluster.runner in SSH_RUNNERS:
            cluster = without_lost_hosts(run, cluster, min_nodes, folder)


def next_log_folder(logs: Path, cluster: Cluster) -> Path:
    """Return the first log folder of which no start has made use.

    Where each host is started by hand, that is the first without a record of this host's first
    rank: all hosts come to the same folder that way.
    """
    for number in itertools.count(1):
        folder = logs / f"attempt-{number:03d}"
        if cluster.node_rank is None:
            is_used = folder.exists()
        else:
            first_rank = sum(host.slots for host in cluster.hosts[: cluster.node_rank])
            is_used = record_file(folder, first_rank).exists()
        if not is_used:
            return folder
    raise AssertionError


def make_log_folder(logs: Path, cluster: Cluster) -> Path:
    """Choose the next log folder; one that is new, where this launcher starts all ranks.

    The folder of all logs must exist. Two launchers that shared one of the folders in it would end
    each other's ranks.
    """
    folder = next_log_folder(logs, cluster)
    if cluster.node_rank is not None:  # the launchers of all hosts meet in the same folder
        return folder
    for number in itertools.count(int(folder.name.removeprefix("attempt-"))):
        folder = logs / f"attempt-{number:03d}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(trust.PRIVATE_FOLDER)
            return folder
    raise AssertionError


def without_lost_hosts(run: RunConfig, cluster: Cluster, min_nodes: int, folder: Path) -> Cluster:
    """Return the cluster of the hosts that can be reached, as many as the global batch allows.

    Raises:
        UserError: if they are too few.
    """
    alive = reachable_hosts(cluster)
    lost = [host.name for host in cluster.hosts if host not in alive]
    if not lost:
        return cluster
    hosts = fitting_hosts(run, alive)
    if len(hosts) < min_nodes:
        raise UserError(
            f"at least min_nodes={min_nodes} hosts must be left; got {len(hosts)}; lost are "
            f"{', '.join(lost)}"
        )
    hostfile = folder / "hostfile"
    write_text(hostfile, hostfile_text(hosts))
    smaller = replace(cluster, hosts=hosts, hostfile=hostfile, num_nodes=None)
    if cluster.master_addr and cluster.hosts[0] != hosts[0]:
        smaller = replace(smaller, master_addr="")
    fitting = resolve_batch(run, smaller.world_size).config
    click.echo(
        f"Lost {', '.join(lost)}; going on with {smaller.describe()}; "
        f"{fitting.batch_equation(smaller.world_size)}",
        err=True,
    )
    return smaller


def fitting_hosts(run: RunConfig, hosts: Sequence[Host]) -> tuple[Host, ...]:
    """Return the most hosts, from the first on, over which the global batch divides."""
    for count in range(len(hosts), 0, -1):
        chosen = tuple(hosts[:count])
        with contextlib.suppress(ValueError):
            resolve_batch(run, sum(host.slots for host in chosen))
            return chosen
    return ()


class Attempt:
    """One start of the command, until all its ranks are gone.

    Args:
        cluster: where it goes.
        folder: for logs and records.
    """

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.asked_by = ""
        self._is_started = False
        self._stop_deadline = self._end_deadline = float("inf")

    def run(self, start: Start) -> int:
        """Run the command and return the exit code: the first failing rank's, if one failed.

        `signals` must be entered.
        """
        click.echo(f"Starting {self.cluster.describe()}; logs in {self.folder}\n", err=True)
        click.echo(shell_text(start.command, start.shown_environment) + "\n", err=True)
        self.process = subprocess.Popen(
            start.command,
            env=start.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._is_started = True
        printer = Printer(self.folder)
        reader = threading.Thread(target=self._read, args=[printer], daemon=True)
        reader.start()
        hidden_file = start.hidden_file
        while not self._is_over(time.monotonic()):
            if hidden_file is not None and len(self._records()) >= self.cluster.world_size:
                hidden_file.unlink(missing_ok=True)  # every guard has read it
                hidden_file = None
            printer.flush_old()
            time.sleep(POLL_S)
        self._kill(signal.SIGKILL)
        self.process.wait()
        reader.join(timeout=5)
        code = self._exit_code()
        self._report(code, printer)
        return code

    def is_worth_a_restart(self, code: int) -> bool:
        """Return whether the run failed by something that may not happen again."""
        if self.asked_by or code in (0, EXIT_USER_ERROR):
            return False
        # A launcher that was killed made its ranks stop and save: nobody asked for an end.
        return code != EXIT_STOPPED or self.process.returncode < 0

    # --- the loop --------------------------------------------------------------------------------

    def _is_over(self, now: float) -> bool:
        """Push the run towards its end where there is a reason; return whether all is gone."""
        has_ended = self.process.poll() is not None
        if self.asked_by and self._stop_deadline == float("inf"):
            click.echo(f"\n{self.asked_by}: stopping at the next micro batch.", err=True)
            with contextlib.suppress(OSError):
                trust.append_to_own_file(self.folder / STOP_FILE).close()
            self._stop_deadline = now + STOP_GRACE_S + MARGIN_S
        if trust.is_own_file(self.folder / FAILED_FILE):
            self._end_deadline = min(self._end_deadline, now + PEER_GRACE_S + MARGIN_S)
        if has_ended:
            self._end_deadline = min(self._end_deadline, now + STOP_GRACE_S + MARGIN_S)
            return self._all_ended() or self._is_group_gone() or now > self._end_deadline
        if now > min(self._stop_deadline, self._end_deadline):
            # DeepSpeed's launcher stops other hosts' ranks on TERM; with pdsh it would end all runs
            # of this user there, where guards see by themselves that their connection is gone.
            self._kill(signal.SIGKILL if self.cluster.runner == "pdsh" else signal.SIGTERM)
            self._end_deadline = now + MARGIN_S
            self._stop_deadline = float("inf")
            self._kill_later(MARGIN_S)
        return False

    def _kill_later(self, seconds: float) -> None:
        timer = threading.Timer(seconds, self._kill, [signal.SIGKILL])
        timer.daemon = True
        timer.start()

    def _all_ended(self) -> bool:
        """Return whether every rank that ever started has written how it ended."""
        return all(record.exit_code is not None for record in self._records())

    def _is_group_gone(self) -> bool:
        """Return whether no process is left, where all of them are on this host."""
        if self.cluster.runner not in ("local", "no-ssh"):
            return False
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def _kill(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def _records(self) -> list[RankRecord]:
        return read_records(self.folder)

    # --- input and output ------------------------------------------------------------------------

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Turn signals into a request to stop; a second control-C ends this process."""
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        old = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked_by and number == signal.SIGINT and self._is_started:
            self._kill(signal.SIGKILL)
        self.asked_by = self.asked_by or f"Received {signal.Signals(number).name}"

    def _read(self, printer: Printer) -> None:
        """Pass on all output: whatever goes wrong with a line, the ranks' pipe must not fill."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline(MAX_LINE_BYTES):
            with contextlib.suppress(Exception):  # the logs have it
                printer.take(line.decode(errors="replace"))

    def _exit_code(self) -> int:
        records = self._records()
        failure = first_failure(records)
        if failure is not None:
            return failure.exit_code or 1
        codes = {record.exit_code for record in records}
        if records and codes == {0} and self._is_complete(records):
            return 0
        if records and codes <= {0, EXIT_STOPPED} and self._is_complete(records):
            return EXIT_STOPPED
        if self.asked_by:
            return 128 + signal.SIGTERM
        return max(self.process.returncode, 1)

    def _is_complete(self, records: Sequence[RankRecord]) -> bool:
        """Return whether all ranks, or those of this host, left a record."""
        node_rank = self.cluster.node_rank
        here = self.cluster.world_size if node_rank is None else self.cluster.hosts[node_rank].slots
        return len(records) >= here

    def _report(self, code: int, printer: Printer) -> None:
        """Print how it ended: the first failing rank's error, not those of its victims."""
        if code in (0, EXIT_STOPPED, EXIT_USER_ERROR):
            printer.flush()
        elif not self._records() or (self.asked_by and first_failure(self._records()) is None):
            printer.flush()
            click.echo(f"Error: the run ended with exit code {code}", err=True)
        else:
            click.echo(f"Error: {describe_failure(self.folder)}", err=True)


class Printer:
    """Passes output on, but holds back an error until it is known whose was the first.

    Args:
        folder: the log folder, where a failure is announced.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: list[str] = []
        self._held_since = 0.0
        self._lock = threading.Lock()

    def take(self, line: str) -> None:
        """Print a line, or hold it."""
        if any(noise in line for noise in _LAUNCHER_NOISE):
            return
        with self._lock:
            if self._held or any(sign in line for sign in _ERROR_SIGNS):
                self._held_since = self._held_since if self._held else time.monotonic()
                self._held.append(line)
            else:
                self._print(line)

    def flush_old(self) -> None:
        """Print what was held for long, where no rank failed."""
        is_old = bool(self._held) and time.monotonic() - self._held_since > HOLD_S
        if is_old and not trust.is_own_file(self.folder / FAILED_FILE):
            self.flush()

    def flush(self) -> None:
        """Print what was held."""
        with self._lock:
            for line in self._held:
                self._print(line)
            self._held.clear()

    def _print(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.write(line)
            sys.stdout.flush()
