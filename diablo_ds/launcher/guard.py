"""The process between a launcher and a rank: starts the rank, watches it, and never outlives it.

A rank cannot see that it is stopped, cannot tell why it was killed, and does not notice that its
launcher is gone. Its guard does: it writes the rank's output to a file of its own, records how the
rank ended, ends it when the launcher or another rank is gone, and when it gives no sign of life
for too long, after it has printed its Python stacks. Should the guard itself be killed, the kernel
kills the rank.

Only the standard library is used here: a guard takes a few megabytes beside every rank.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from diablo_ds.errors import UserError
from diablo_ds.files import trust
from diablo_ds.launcher.cluster import rank_python
from diablo_ds.launcher.devices import AGENT, check_devices, given_environment, put_back
from diablo_ds.launcher.ports import agree_on_port, meeting_folder
from diablo_ds.launcher.rank_output import RankOutput
from diablo_ds.ranks import terminal
from diablo_ds.ranks.environment import STORE_FILE, read_hidden, remove_start
from diablo_ds.ranks.exit_codes import EXIT_STOPPED, EXIT_USER_ERROR
from diablo_ds.ranks.heartbeat import DESCRIPTOR, STACKS_SIGNAL
from diablo_ds.ranks.identity import ANY_PORT, RANK_NAMES, find_identity
from diablo_ds.ranks.records import (
    FAILED_FILE,
    STOP_FILE,
    STOP_GRACE_S,
    STOPPED,
    RankRecord,
    announce_failure,
    log_file,
    write_record,
)

PEER_GRACE_S = 5.0
"""The same where another rank has failed: no step can be finished any more."""
STACKS_WAIT_S = 2.0
POLL_S = 0.2
FOLDER_POLL_S = 1.0
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run `diablo-ds train` with this script's arguments under guard; exit as it did."""
    terminal.accept_any_character()
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--log-folder", "--log_folder", type=Path)
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--env-file", type=Path)
    parser.add_argument("--venv", type=Path)
    parser.add_argument("--wrap", default="")
    parser.add_argument("--shared-folders", "--shared_folders", action="store_true")
    own, train_arguments = parser.parse_known_args()
    if own.shared_folders:
        train_arguments.append("--shared-folders")
    python = rank_python(own.venv, own.wrap)
    guard = None
    resources = contextlib.ExitStack()
    try:
        variables = dict(e.split("=", 1) for e in own.env)
        if own.env_file is not None:
            variables |= read_hidden(own.env_file)
        environment = rank_environment(variables)
        if own.log_folder is not None:
            trust.make_folder(own.log_folder, "log folder", shared=own.shared_folders)
        if environment.get("RANK") and environment["MASTER_PORT"] == str(ANY_PORT):
            identity = find_identity(environment)
            folder = resources.enter_context(meeting_folder(own.log_folder, identity, environment))
            environment["MASTER_PORT"] = str(agree_on_port(folder, identity.rank))
        if own.venv is not None:  # DeepSpeed looks for ninja there
            environment["PATH"] = f"{own.venv / 'bin'}{os.pathsep}{environment.get('PATH', '')}"
        guard = Guard(environment, own.log_folder)
        code = guard.run([*python, "-u", "-m", "diablo_ds", "train", *train_arguments])
    except (ValueError, OSError) as error:
        sys.stderr.write(f"Error: {error}\n")
        code = EXIT_USER_ERROR if isinstance(error, UserError) else 1
        if own.log_folder is not None and guard is None:
            _record_refusal(own.log_folder, code, str(error), shared=own.shared_folders)
    finally:
        resources.close()
        if guard is not None and guard.is_orphan:  # a killed launcher leaves its files
            remove_start(own.env_file, os.environ.get(STORE_FILE))
    sys.exit(code)


def _record_refusal(folder: Path, code: int, message: str, *, shared: bool) -> None:
    """Write down that a rank could not be started, so that no other one waits for it.

    Nothing is written where it is the folder itself that is refused.
    """
    with contextlib.suppress(ValueError, OSError):
        trust.make_folder(folder, "log folder", shared=shared)
        identity = find_identity(os.environ)
        now = time.time()
        with trust.append_to_own_file(log_file(folder, identity.rank)) as file:
            file.write(f"Error: {message}\n".encode())
        record = RankRecord(
            *(identity.rank, socket.gethostname(), os.getpid(), identity.world_size, now, now),
            exit_code=code,
            cause=_describe_exit(code),
        )
        write_record(folder, record)
        announce_failure(folder, identity.rank)


def rank_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the rank that this process guards.

    It has torch's names for rank and world size, whichever launcher started this process, and the
    devices that the user or the scheduler gave to this host.

    Args:
        variables: what the user gave to the ranks.

    Raises:
        UserError: if the variables do not tell which rank this is, or fewer devices than ranks
            were given.
    """
    environment = {**os.environ, **variables}
    identity = find_identity(environment)
    for name in RANK_NAMES:  # set, but empty, where it is alone
        environment.pop(name, None)
    if identity.launcher:
        environment |= identity.variables()
    given = given_environment()
    given = None if given is None else {**given, **variables}
    check_devices(environment if given is None else given, identity.local_size or 1)
    return environment if given is None else put_back(environment, given)


@dataclass
class _Watch:
    """What a guard knows of its rank's life."""

    phase: str = ""
    limit_s: float = 0.0
    last_beat: float = 0.0
    beats: int = 0

    def beat(self, line: str, now: float) -> None:
        limit, _, self.phase = line.partition(" ")
        self.limit_s, self.last_beat, self.beats = float(limit), now, self.beats + 1

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
        self._ancestors = _ancestors()
        self._partial = b""

    def run(self, command: Sequence[str]) -> int:
        """Run the rank and return its exit code: 128 and the number where a signal ended it."""
        beats, beats_end = os.pipe()
        os.set_blocking(beats, False)
        self.environment[DESCRIPTOR] = str(beats_end)
        log = None if self.folder is None else log_file(self.folder, self.rank)
        self.output = RankOutput(log, is_shown=self.rank == 0)
        self.environment |= self.output.environment()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # inherited until the rank has its handler
        self.process = subprocess.Popen(
            command,
            env=self.environment,
            pass_fds=[beats_end],
            stdout=self.output.ends[0],
            stderr=self.output.ends[-1],
            preexec_fn=_die_with_parent,
        )
        os.close(beats_end)
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        record = RankRecord(
            rank=self.rank,
            host=socket.gethostname(),
            pid=self.process.pid,
            world_size=int(self.environment.get("WORLD_SIZE", "1")),
            started=time.time(),
        )
        self._write(record)
        self._watch(beats)
        code = self.process.returncode
        cause = self.asked_by or _describe_exit(code)
        code = 128 - code if code < 0 else code
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
        """Stop the rank where there is a reason to."""
        if now > self._kill_at:
            self._send(signal.SIGKILL)
        elif not self._has_hung and self.watch.is_late(now):
            self._end_hanging(now)
        elif not self.asked_by and _ancestors() != self._ancestors:
            self.is_orphan = True
            self._ask("the launcher is gone", signal.SIGTERM, STOP_GRACE_S)
        elif not self.asked_by and _reader_is_gone():
            self.is_orphan = True
            self._ask("the launcher's terminal or connection is gone", signal.SIGTERM, STOP_GRACE_S)
        elif self.folder is not None and now > self._next_folder_poll:
            self._next_folder_poll = now + FOLDER_POLL_S
            has_failed = trust.is_own_file(self.folder / FAILED_FILE)
            if has_failed and _is_stopped(self.process.pid):
                self._end_hanging(now)
            elif has_failed:
                self._ask("stopped, since another rank failed", signal.SIGTERM, PEER_GRACE_S)
            elif not self.asked_by and trust.is_own_file(self.folder / STOP_FILE):
                self._ask("stopped by the launcher", signal.SIGTERM, STOP_GRACE_S)

    def _end_hanging(self, now: float) -> None:
        """Print the stacks of a rank that gives no sign of life, and kill it."""
        self._has_hung = True
        silence = f"no sign of life for {now - self.watch.last_beat:.0f} s"
        stopped = f"; it is {STOPPED}" if _is_stopped(self.process.pid) else ""
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
                self._forward_later = number  # it has no handler yet
        elif not self.asked_by:
            # After control-C the terminal has told the rank too; a second one would cut it short.
            self._ask(f"received {signal.Signals(number).name}", signal.SIGTERM, STOP_GRACE_S)

    def _send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def _write(self, record: RankRecord) -> None:
        if self.folder is not None:
            write_record(self.folder, record)


def _die_with_parent() -> None:
    """In the rank, before it starts: have the kernel kill it when its guard dies."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _ancestors() -> tuple[int, int]:
    """Return the launcher of this process and, where that is DeepSpeed's, its own parent."""
    parent = os.getppid()
    try:
        command = Path(f"/proc/{parent}/cmdline").read_bytes()
        if AGENT not in command:
            return parent, 0
        return parent, int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return parent, 0


def _reader_is_gone() -> bool:
    """Return whether standard output is a pipe that nobody reads any more."""
    poller = select.poll()
    try:
        poller.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poller.poll(0))
    except (OSError, ValueError):
        return False


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False


def _describe_exit(code: int) -> str:
    if code == 0:
        return "done"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    meanings = {EXIT_STOPPED: "stopped as asked", EXIT_USER_ERROR: "wrong input"}
    return f"exit code {code}" + (f", {meanings[code]}" if code in meanings else "")
