"""The kinds of faults that a run has to survive."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress

from benchmarks.breakable_run import BreakableRun, Undo
from diablo_ds.files.layout import (
    ADAPTER_TENSOR_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    RunFolder,
    list_checkpoints,
)
from diablo_ds.launcher.deepspeed_command import SCRIPT

Fault = Callable[[BreakableRun, "subprocess.Popen[bytes]"], Undo]
LOSE_HOST, STOP_RANK, FILL_DISK = "lose a host", "stop a rank", "fill the disk"
_RANK, _RUNNER, _AGENT = "-m diablo_ds train", "/deepspeed ", "deepspeed.launcher.launch "
_GUARD = "/".join(SCRIPT.resolve().parts[-2:])
"""Parts of command lines of a run's processes; the runner's and the agent's contain the guard's."""


def _kill_rank(run: BreakableRun, process: subprocess.Popen[bytes]) -> Undo:
    return run.signal_one(_RANK, signal.SIGKILL)


def _kill_rank_in(phase: str) -> Fault:
    """Return a fault in which a rank dies by SIGKILL at a random moment of a phase."""

    def fault(run: BreakableRun, process: subprocess.Popen[bytes]) -> Undo:
        rank, delay_s = run.random.randrange(2), run.random.uniform(0, 0.008)
        half_written = run.wish.with_suffix(".tmp")
        half_written.write_text(f"{phase} {rank} {delay_s}")
        half_written.rename(run.wish)
        return lambda: run.wish.unlink(missing_ok=True)

    return fault


def _lose_host(run: BreakableRun, process: subprocess.Popen[bytes]) -> Undo:
    assert run.hosts is not None
    hosts, name = run.hosts, run.random.choice(sorted(run.hosts.servers))
    hosts.stop_host(name)
    return lambda: hosts.start_host(name)


def _kill_guard(run: BreakableRun, process: subprocess.Popen[bytes]) -> Undo:
    guards = set(run.pids(_GUARD)) - set(run.pids(_AGENT)) - set(run.pids(_RUNNER))
    with suppress(ProcessLookupError):
        os.kill(run.random.choice(sorted(guards)), signal.SIGKILL)
    return lambda: None


def _terminate_runner(run: BreakableRun, process: subprocess.Popen[bytes]) -> Undo:
    return run.signal_one(_RUNNER, signal.SIGTERM)


def _kill_agent(run: BreakableRun, process: subprocess.Popen[bytes]) -> Undo:
    return run.signal_one(_AGENT, signal.SIGKILL)


def _terminate_launcher(run: BreakableRun, process: subprocess.Popen[bytes]) -> Undo:
    process.send_signal(signal.SIGTERM)
    return lambda: None


def _kill_launcher(run: BreakableRun, process: subprocess.Popen[bytes]) -> Undo:
    process.kill()
    return lambda: None


def _stop_rank(run: BreakableRun, process: subprocess.Popen[bytes]) -> Undo:
    return run.signal_one(_RANK, signal.SIGSTOP)


def _fill_disk(run: BreakableRun, process: subprocess.Popen[bytes]) -> Undo:
    filler = run.folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    return filler.unlink


def _damage(change: Callable[[bytes], bytes]) -> Fault:
    """Return a fault that kills a rank, and damages the last checkpoint when all has ended."""

    def fault(run: BreakableRun, process: subprocess.Popen[bytes]) -> Undo:
        run.signal_one(_RANK, signal.SIGKILL)

        def damage() -> None:
            checkpoints = list_checkpoints(RunFolder(run.output).checkpoints)
            if len(checkpoints) > 1:
                file = checkpoints[0] / run.random.choice(
                    [ADAPTER_TENSOR_FILE, OPTIMIZER_FILE, STATE_FILE]
                )
                file.write_bytes(change(file.read_bytes()))

        return damage

    return fault


def _truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


FAULTS: dict[str, Fault] = {
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
    STOP_RANK: _stop_rank,
    FILL_DISK: _fill_disk,
    "truncate a checkpoint": _damage(_truncate),
    "flip a bit of a checkpoint": _damage(_flip_bit),
    LOSE_HOST: _lose_host,
}
"""Each breaks the run, and returns what to do once all its processes are gone."""
