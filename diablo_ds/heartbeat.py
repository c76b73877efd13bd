"""Signs of life that a rank gives to the guard process above it; without a guard, nothing."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal

DESCRIPTOR = "DIABLO_HEARTBEAT_FD"
"""Environment variable with the file descriptor of the guard's pipe."""
STACKS_SIGNAL = signal.SIGUSR2
"""Makes a rank print the Python stacks of all its threads."""
START_LIMIT_S = 1800.0
"""How long joining, reading or loading may take: as long as DeepSpeed waits for a rank."""


class Heart:
    """What this process is doing, and how long that may take."""

    limit_s = START_LIMIT_S
    """Seconds until the next beat, after which the rank counts as hanging; 0 for ever."""
    step = 0
    """The step that beats belong to; 0 outside of any."""

    def beat(self, phase: str) -> None:
        """Tell the guard what comes now."""
        descriptor = os.environ.get(DESCRIPTOR)
        if descriptor is not None:
            where = f"{phase} of step {self.step}" if self.step else phase
            with contextlib.suppress(OSError):  # the guard is gone, and this process with it
                os.write(int(descriptor), f"{self.limit_s:g} {where}\n".encode())


heart = Heart()


def listen() -> None:
    """Print all Python stacks on `STACKS_SIGNAL`, also from inside a hanging call into C."""
    faulthandler.enable()
    faulthandler.register(STACKS_SIGNAL, all_threads=True, chain=False)
