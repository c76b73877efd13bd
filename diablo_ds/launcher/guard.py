"""The process between a launcher and a rank: starts the rank, watches it, and never outlives it.

A rank cannot see that it is stopped, cannot tell why it was killed, and does not notice that its
launcher is gone. Its guard does: it writes the rank's output to a file of its own, records how the
rank ended, ends it when the launcher or another rank is gone, and when it gives no sign of life
for too long, after it has printed its Python stacks. Should the guard itself be killed, the kernel
kills the rank.

Only the standard library is used here: a guard takes a few megabytes beside every rank.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from diablo_ds.files import owned
from diablo_ds.launcher.processes import (
    ancestors,
    describe_exit,
    die_with_parent,
    is_stopped,
    reader_is_gone,
)
from diablo_ds.launcher.rank_output import RankOutput
from diablo_ds.launcher.start_command import start_command
from diablo_ds.ranks.exit_codes import EXIT_STOPPED
from diablo_ds.ranks.heartbeat import DESCRIPTOR, RUN_FOLDER, STACKS_SIGNAL
from diablo_ds.ranks.memory_kills import explain_kill, read_counter
from diablo_ds.ranks.records import (
    FAILED_FILE,
    NOTE_S,
    STOP_FILE,
    STOP_GRACE_S,
    STOPPED,
    RankRecord,
    announce_failure,
    log_file,
    write_record,
)

PEER_GRACE_S = 5.0
"""From a request to stop to SIGKILL where another rank has failed: no step can be finished."""
STACKS_WAIT_S = 2.0
POLL_S = 0.2
FOLDER_POLL_S = 1.0


@dataclass
class _Watch:
    """What a guard knows of its rank's life."""

    phase: str = ""
    limit_s: float = 0.0
    last_beat: float = 0.0
    beats: int = 0
    run_folder: str = ""

    def beat(self, line: str, now: float) -> None:
        limit, _, text = line.partition(" ")
        if limit == RUN_FOLDER:
            self.run_folder = text
        else:
            self.limit_s, self.phase, self.last_beat = float(limit), text, now
        self.beats += 1

    def is_late(self, now: float) -> bool:
        return self.limit_s > 0 and now - self.last_beat > self.limit_s


class Guard:
    """Starts one rank and stays until it ended.

    Args:
        environment: of the rank, with RANK and WORLD_SIZE unless it is alone.
        folder: for the log and the record; none to pass output through and keep no record.
    """

    def __init__(self, environment: Mapping[str, str], folder: Path | None) -> None:
        self.environment = dict(environment)
        self.folder = folder
        self.rank = int(environment.get("RANK", "0"))
        self.watch = _Watch()
        self.asked_by = ""
        self.is_orphan = False
        self._kill_at = float("inf")
        self._forward_later: int | None = None
        self._next_folder_poll = 0.0
        self._last_note = 0
        self._ancestors = ancestors()
        self._partial = b""

    def run(self, command: Sequence[str]) -> int:
        """Run the rank and return its exit code: 128 and the number where a signal ended it."""
        beats, beats_end = os.pipe()
        os.set_blocking(beats, False)
        self.environment[DESCRIPTOR] = str(beats_end)
        log = None if self.folder is None else log_file(self.folder, self.rank)
        self.output = RankOutput(log, is_shown=self.rank == 0)
        self.environment |= self.output.environment()
        # Ignored, as the rank inherits, until the rank has its own handler: see `beating`.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        counter, since = read_counter(), time.monotonic()
        self.process = subprocess.Popen(
            command,
            env=self.environment,
            pass_fds=[beats_end, *self.output.inherited],
            stdout=self.output.ends[0],
            stderr=self.output.ends[-1],
            preexec_fn=die_with_parent,
        )
        os.close(beats_end)
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self.record = record = RankRecord(
            rank=self.rank,
            host=socket.gethostname(),
            pid=self.process.pid,
            world_size=int(self.environment.get("WORLD_SIZE", "1")),
            started=time.time(),
        )
        self._write(record)
        self._watch(beats)
        code = self.process.returncode
        cause = self.asked_by or describe_exit(code)
        code = 128 - code if code < 0 else code
        if not self.asked_by and code == 128 + signal.SIGKILL:
            why = explain_kill(self.process.pid, since, counter)
            cause = f"{cause}, {why}" if why else cause
        record = replace(
            record,
            ended=time.time(),
            exit_code=code,
            cause=cause,
            phase=self.watch.phase,
            by_request=(
                (bool(self.asked_by) and not self._has_hung)
                # DeepSpeed's launcher sends its SIGTERM to the rank and to its guard
                or code in (EXIT_STOPPED, 128 + signal.SIGTERM, 128 + signal.SIGINT)
            ),
        )
        self._write(record)
        if record.has_failed and self.folder is not None:
            announce_failure(self.folder, self.rank)
        elif record.has_failed and code > 128:  # it could not say so itself
            command = start_command(self.environment, self.watch.run_folder)
            self.output.say(
                f"rank {self.rank} was {cause}\n"
                f"After a repair, this continues from the last checkpoint:\n  {command}"
            )
        self.output.close()
        return code

    # --- the loop --------------------------------------------------------------------------------

    _has_hung = False

    def _watch(self, beats: int) -> None:
        """Pass on output and look after the rank until it has ended."""
        poller = select.poll()
        poller.register(beats, select.POLLIN)
        self.output.start(poller)
        while self.process.poll() is None:
            for descriptor, _ in poller.poll(POLL_S * 1000):
                take = self._read_beats if descriptor == beats else self.output.take
                if not take(descriptor):
                    poller.unregister(descriptor)
            self._look_after(time.monotonic())
        self._read_beats(beats)
        self.output.take_rest()

    def _read_beats(self, beats: int) -> bool:
        """Take note of signs of life; return whether more can come."""
        try:
            data = os.read(beats, 65536)
        except BlockingIOError:
            return True
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self.watch.beat(line.decode(), time.monotonic())
        if lines and self._forward_later is not None:
            number, self._forward_later = self._forward_later, None
            self._send(number)
        return bool(data)

    def _look_after(self, now: float) -> None:
        """Note what the rank does, and stop it where there is a reason to."""
        note = int(time.time() // NOTE_S)
        if note != self._last_note:
            self._last_note = note
            phase_s = now - self.watch.last_beat if self.watch.phase else 0.0
            self._write(
                replace(self.record, phase=self.watch.phase, phase_s=phase_s, noted=time.time())
            )
        if now > self._kill_at:
            self._send(signal.SIGKILL)
        elif not self._has_hung and self.watch.is_late(now):
            self._end_hanging(now)
        elif not self.asked_by and ancestors() != self._ancestors:
            self.is_orphan = True
            self._ask("the launcher is gone", signal.SIGTERM, STOP_GRACE_S)
        elif not self.asked_by and reader_is_gone():
            self.is_orphan = True
            self._ask("the launcher's terminal or connection is gone", signal.SIGTERM, STOP_GRACE_S)
        elif self.folder is not None and now > self._next_folder_poll:
            self._next_folder_poll = now + FOLDER_POLL_S
            has_failed = owned.is_own_file(self.folder / FAILED_FILE)
            if has_failed and is_stopped(self.process.pid):
                self._end_hanging(now)
            elif has_failed:
                self._ask("stopped, since another rank failed", signal.SIGTERM, PEER_GRACE_S)
            elif not self.asked_by and owned.is_own_file(self.folder / STOP_FILE):
                self._ask("stopped by the launcher", signal.SIGTERM, STOP_GRACE_S)

    def _end_hanging(self, now: float) -> None:
        """Print the stacks of a rank that gives no sign of life, and kill it."""
        self._has_hung = True
        silence = f"no sign of life for {now - self.watch.last_beat:.0f} s"
        stopped = f"; it is {STOPPED}" if is_stopped(self.process.pid) else ""
        self.asked_by = silence + stopped
        self.output.say(f"rank {self.rank} gives {silence}, in {self.watch.phase}{stopped}")
        self._send(STACKS_SIGNAL)
        self._kill_at = now + STACKS_WAIT_S

    def _ask(self, cause: str, number: int, grace_s: float) -> None:
        """Ask the rank to stop, and set a time to kill it."""
        kill_at = time.monotonic() + grace_s
        if kill_at < self._kill_at:
            self._kill_at = kill_at
        if not self.asked_by:
            self.asked_by = cause
            self._send(number)

    # --- signals ---------------------------------------------------------------------------------

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            if self.watch.beats:
                self._send(number)
            else:
                self._forward_later = number  # until its first beat the rank has no handler
        elif not self.asked_by:
            # After control-C the terminal has told the rank too; a second one would cut it short.
            self._ask(f"received {signal.Signals(number).name}", signal.SIGTERM, STOP_GRACE_S)

    def _send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def _write(self, record: RankRecord) -> None:
        if self.folder is not None:
            write_record(self.folder, record)
