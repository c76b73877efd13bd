"""The process of one tracker: reads what is measured from its input, and ends with it.

python -P -m diablo_ds.trackers.child KIND RUN_NAME, in the tracker's folder.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from diablo_ds.files import modes

END_S = 60.0
"""How long it may take to finish where nobody waits for it any more."""


def main() -> None:
    """Open the tracker and call it by each line; an error of its ends the process."""
    kind, run_name = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the run saves first, and ends the input then
    os.umask(0o777 & ~modes.PRIVATE_FOLDER)
    tracker = _open(kind, Path.cwd(), run_name)
    for line in sys.stdin.buffer:
        values = json.loads(line)
        getattr(tracker, values.pop("call"))(**values)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, END_S)
    tracker.close()


def _open(kind: str, folder: Path, run_name: str) -> Any:
    if kind == "wandb":
        from diablo_ds.trackers.wandb_run import WandbRun

        return WandbRun(folder, run_name)
    if kind == "mlflow":
        from diablo_ds.trackers.mlflow_run import MlflowRun

        return MlflowRun(folder, run_name)
    from diablo_ds.trackers.trackio_run import TrackioRun

    return TrackioRun(folder, run_name)


if __name__ == "__main__":
    main()
