"""Lines of DeepSpeed and its launcher that a user of this program cannot act on.

`deepspeed ... | python -m diablo_ds.ranks.noise` passes on all others.
"""

from __future__ import annotations

import signal
import sys

from diablo_ds.ranks.live_line import ERASE, is_terminal

NOISE = (
    # of its launcher, which repeats what it was asked for
    "[INFO] [launch.py",
    "[INFO] [runner.py",
    "[INFO] [multinode_runner.py",
    "[ERROR] [launch.py",  # the command and exit code of a rank that has said itself why it ends
    "Unable to find hostfile",
    # of every process
    "Setting accelerator to CPU",
    # of each start of an engine
    "ZeRO with an untested optimizer",
    "overridden with a more memory efficient version",
    "Removing param_group that has no 'params'",
    "with a client provided optimizer",
    "Stage 3 initialize",
)
"""Parts of such lines; warnings of substance have none of them."""


def is_noise(line: str) -> bool:
    """Return whether a line says nothing that a user can act on."""
    return any(part in line for part in NOISE)


def main() -> None:
    """Pass standard input on, line by line, without the noise."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ends with what it reads from
    # The run draws on the same terminal, past this process.
    before = ERASE.encode() if is_terminal(sys.stdout) else b""
    for line in iter(sys.stdin.buffer.readline, b""):
        if not is_noise(line.decode(errors="replace")):
            sys.stdout.buffer.write(before + line)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
