"""Python imports this first in the ranks of `benchmarks/faults.py`: they can be asked to die.

The file named by DIABLO_FAULT_WISH holds a phase, a rank and seconds. When that rank next comes to
that phase, it waits so long in a thread beside and kills itself, in the middle of what it does.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from diablo_ds.ranks.heartbeat import Heart

_beat = Heart.beat


def _beat_or_die(self: Heart, phase: str) -> None:
    _beat(self, phase)
    wish = Path(os.environ["DIABLO_FAULT_WISH"])
    if wish.exists():
        wanted, rank, delay_s = wish.read_text().split()
        if (wanted, rank) == (phase, os.environ.get("RANK")):
            arguments = (os.getpid(), signal.SIGKILL)
            threading.Timer(float(delay_s), os.kill, arguments).start()


if "DIABLO_FAULT_WISH" in os.environ:
    Heart.beat = _beat_or_die  # type: ignore[method-assign]
