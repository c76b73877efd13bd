"""One start of the `deepspeed` command: watched until its ranks are gone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from diablo_ds.config.words import shell_text
from diablo_ds.files import owned
from diablo_ds.launcher.cluster import Cluster
from diablo_ds.launcher.guard import PEER_GRACE_S
from diablo_ds.launcher.launcher_output import Printer, say
from diablo_ds.launcher.starting import Start
from diablo_ds.ranks.exit_codes import EXIT_STOPPED, EXIT_USER_ERROR
from diablo_ds.ranks.records import (
    FAILED_FILE,
    STOP_FILE,
    STOP_GRACE_S,
    RankRecord,
    describe_failure,
    first_failure,
    read_records,
)

POLL_S = 0.2
MARGIN_S = 4.0
"""What a guard may need beyond its grace to see the end and write it down."""
MAX_LINE_BYTES = 1 << 16
EXIT_CUT_SHORT = 128 + signal.SIGTERM
"""Of a run that was asked to stop and could not save in time."""
_ENDED_AT_ONCE = (128 + signal.SIGTERM, 128 + signal.SIGINT)
"""Exit codes of ranks that were told to stop before they trained: there was nothing to save."""


class Attempt:
    """One start of the command, until all its ranks are gone.

    Args:
        cluster: where it goes.
        folder: for logs and records.
        same_command: a line for a shell that continues the run.
    """

    def __init__(self, cluster: Cluster, folder: Path, same_command: str = "") -> None:
        self.cluster = cluster
        self.folder = folder
        self.same_command = same_command
        self.asked_by = ""
        self._is_started = False
        self._stop_deadline = self._end_deadline = float("inf")

    def run(self, start: Start) -> int:
        """Run the command and return the exit code: the first failing rank's, if one failed.

        `signals` must be entered.
        """
        say(f"Starting {self.cluster.describe()}; logs in {self.folder}\n")
        say(shell_text(start.command, start.shown_environment) + "\n")
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
            say(f"\n{self.asked_by}: stopping at the next micro batch.")
            with contextlib.suppress(OSError):
                owned.append_to_own_file(self.folder / STOP_FILE).close()
            self._stop_deadline = now + STOP_GRACE_S + MARGIN_S
        if owned.is_own_file(self.folder / FAILED_FILE):
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
            return EXIT_STOPPED if codes <= {0, EXIT_STOPPED, *_ENDED_AT_ONCE} else EXIT_CUT_SHORT
        return max(self.process.returncode, 1)

    def _is_complete(self, records: Sequence[RankRecord]) -> bool:
        """Return whether all ranks, or those of this host, left a record."""
        node_rank = self.cluster.node_rank
        here = self.cluster.world_size if node_rank is None else self.cluster.hosts[node_rank].slots
        return len(records) >= here

    def _report(self, code: int, printer: Printer) -> None:
        """Print how it ended: the first failing rank's error, not those of its victims."""
        records = self._records()
        has_failed = first_failure(records) is not None
        if has_failed and code != EXIT_USER_ERROR:
            say(f"Error: {describe_failure(self.folder)}")
            return
        printer.flush()
        if code == EXIT_CUT_SHORT and not has_failed:
            say(
                "Error: ranks were killed before they had stopped; what is left of the run is its "
                f"last checkpoint, from which it continues with:\n  {self.same_command}"
            )
        elif code == EXIT_STOPPED and all(record.exit_code != EXIT_STOPPED for record in records):
            say(
                "Stopped before a step was begun; nothing had to be saved. The run starts again "
                f"with:\n  {self.same_command}"
            )
        elif code not in (0, EXIT_STOPPED, EXIT_USER_ERROR):
            say(f"Error: the run ended with exit code {code}")
