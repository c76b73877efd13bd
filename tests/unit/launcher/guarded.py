"""A guard in a process of its own, around some lines of Python."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

from diablo_ds.ranks.records import log_file
from tests.waiting import WAIT_S, wait_until

BEAT = """
import os, signal, sys, time
from diablo_ds.ranks import heartbeat
beating = heartbeat.heart.beating(); beating.__enter__()
heartbeat.heart.limit_s = 1
heartbeat.heart.step = 3
def beat(): heartbeat.heart.beat("forward")
"""


class GuardedRank:
    """A guard in a process of its own, around some lines of Python."""

    def __init__(
        self, folder: Path, code: str, rank: int = 1, *, before: str = "", **streams: object
    ) -> None:
        self.folder, self.rank = folder, rank
        guarded = BEAT + textwrap.dedent(code)
        main = (
            "import sys; from pathlib import Path; from diablo_ds.launcher.guard import Guard\n"
            f"{before}\n"
            f"guard = Guard({{**__import__('os').environ, 'RANK': '{rank}', 'WORLD_SIZE': '2'}}, "
            f"Path({str(folder)!r}))\n"
            f"sys.exit(guard.run([sys.executable, '-u', '-c', {guarded!r}]))"
        )
        self.output = folder / "terminal"
        with self.output.open("wb") as terminal:
            self.process = subprocess.Popen(
                [sys.executable, "-c", main], **{"stdout": terminal, "stderr": terminal, **streams}
            )

    def record(self) -> dict[str, object]:
        return json.loads((self.folder / f"rank-{self.rank:05d}.json").read_text())

    def log(self) -> str:
        return log_file(self.folder, self.rank).read_text()

    def wait_for_log(self, text: str) -> None:
        log = log_file(self.folder, self.rank)
        wait_until(lambda: log.exists() and text in self.log(), f"{text!r} in the log")

    def end(self) -> int:
        return self.process.wait(timeout=WAIT_S)
