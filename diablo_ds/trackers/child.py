"""The process of one tracker: reads what is measured from its input, and ends with it.

python -P -m diablo_ds.trackers.child KIND RUN_NAME START_STEP, in the tracker's folder.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from diablo_ds.files import modes
from diablo_ds.trackers.run_id import ID_FILE
from diablo_ds.trackers.taken_steps import STEPS_FILE, TakenSteps

END_S = 60.0
"""How long it may take to finish where nobody waits for it any more."""


def main() -> None:
    """Open the tracker and call it by each line; an error of its ends the process."""
    kind, run_name, start_step = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the run saves first, and ends the input then
    os.umask(0o777 & ~modes.PRIVATE_FOLDER)
    folder = Path.cwd()
    if start_step == "0":  # nothing that an earlier start recorded belongs to this one
        for name in (ID_FILE, STEPS_FILE):
            (folder / name).unlink(missing_ok=True)
    tracker, taken = _open(kind, folder, run_name), TakenSteps(folder)
    for line in sys.stdin.buffer:
        values = json.loads(line)
        _record(tracker, taken, values.pop("call"), values)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, END_S)
    tracker.close()
    taken.close()


def _record(tracker: Any, taken: TakenSteps, call: str, values: dict[str, Any]) -> None:
    """Hand something on, but not numbers and pictures of steps that the tracker has already."""
    tags: list[str] = []
    if call == "scalars":
        tags = taken.new(values["step"], values["values"])
        values["values"] = {tag: values["values"][tag] for tag in tags}
        if not tags:
            return
    elif call in ("image", "histogram"):
        tags = taken.new(values["step"], [values["tag"]])
        if not tags:
            return
    getattr(tracker, call)(**values)
    if tags:
        taken.take(values["step"], tags)


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
