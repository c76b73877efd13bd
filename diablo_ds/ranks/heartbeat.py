"""Signs of life that a rank gives to the guard process above it.

Without a guard, a timer in the process itself ends it when the next sign is late.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
from collections.abc import Iterator
from pathlib import Path

DESCRIPTOR = "DIABLO_HEARTBEAT_FD"
"""Environment variable with the file descriptor of the guard's pipe."""
STACKS_SIGNAL = signal.SIGUSR2
"""Makes a rank print the Python stacks of all its threads."""
RUN_FOLDER = "folder"
"""Word before the run folder in the guard's pipe, in the place of a beat's limit."""
START_LIMIT_S = 1800.0
"""How long joining, reading or loading may take: as long as DeepSpeed waits for a rank."""


class Heart:
    """What this process is doing, and how long that may take."""

    limit_s = START_LIMIT_S
    """Seconds until the next beat, after which the rank counts as hanging; 0 for never."""
    step = 0
    """The step that beats belong to; 0 outside of any."""
    phase = ""
    """What this process is doing, for messages."""
    is_beating = False
    """Whether a training run is in progress."""

    @property
    def where(self) -> str:
        """What this process is doing, and of which step."""
        return f"{self.phase} of step {self.step}" if self.step else self.phase

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Beat inside the block, and print all Python stacks on `STACKS_SIGNAL`, also inside C.

        A guard takes the first beat for the sign that the rank handles SIGUSR1, and forwards none
        before it. So nothing may beat until `StopRequests` is entered.
        """
        faulthandler.enable()
        faulthandler.register(STACKS_SIGNAL, all_threads=True, chain=False)
        self.is_beating, self.limit_s, self.step = True, START_LIMIT_S, 0
        try:
            yield
        finally:
            self.limit_s = 0.0  # what follows may take any time
            self.beat(self.phase)
            self.is_beating = False

    def beat(self, phase: str) -> None:
        """Announce what this process does next."""
        self.phase = phase
        descriptor = os.environ.get(DESCRIPTOR)
        if not self.is_beating:
            return
        if descriptor is None:
            faulthandler.cancel_dump_traceback_later()
            if self.limit_s:
                faulthandler.dump_traceback_later(self.limit_s, exit=True)
        else:
            _tell(f"{self.limit_s:g} {self.where}")

    def tell_ready(self, phase: str) -> None:
        """Tell the guard that this process handles SIGUSR1, and that what it does may take long.

        For commands that do not beat.
        """
        if DESCRIPTOR in os.environ:
            _tell(f"0 {phase}")

    def tell_run_folder(self, folder: Path) -> None:
        """Tell the guard which folder the run has, for what it says where it cannot go on."""
        if self.is_beating and DESCRIPTOR in os.environ:
            _tell(f"{RUN_FOLDER} {folder}")


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # the guard is gone, and this process with it
        os.write(int(os.environ[DESCRIPTOR]), f"{line}\n".encode(errors="replace"))


heart = Heart()
