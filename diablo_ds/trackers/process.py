"""A tracker in a process of its own: nothing that it does or leaves undone reaches the run.

Its package may hang, crash, take signals or print; it may read settings in its working folder and
talk to a network. So it runs beside rank 0, in a folder of the run, and gets what is measured as
lines of JSON by a pipe that a thread fills from a bounded queue.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from diablo_ds.errors import UserError
from diablo_ds.files import owned
from diablo_ds.ranks.environment import RUN_KEY
from diablo_ds.ranks.log import logger
from diablo_ds.ranks.masking import hide_secrets

TITLES = {"wandb": "Weights & Biases", "mlflow": "MLflow", "trackio": "Trackio"}
"""Names for people, by the names of the packages."""
LOG_FILE = "log.txt"
"""In a tracker's folder: what its package printed."""
CLOSE_S = 60.0
"""How long the end of a run waits for a tracker."""
_MODULE = "diablo_ds.trackers.child"
_MOST_WAITING = 1000
"""Lines that wait for a tracker which does not keep up; more are left out."""
_END_OF_LOG_BYTES = 4096
_NO_TELEMETRY = {
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
}
"""What keeps packages from telling their makers how they are used."""
_PLACES_OF_TRACKIO = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
"""Variables by which its users name another machine."""


def check_packages(kinds: Sequence[str]) -> None:
    """Raise UserError where the package of a tracker is not installed."""
    for kind in kinds:
        if importlib.util.find_spec(kind) is None:
            raise UserError(
                f"report_to needs the package of the tracker; got report_to={kind!r}, and "
                f"{kind} is not installed; run pip install 'diablo-ds[{kind}]'"
            )


class TrackerProcess:
    """Hands what is measured to the process of a tracker; see `diablo_ds.ranks.tracker.Tracker`.

    No call waits, but for `close`. What goes wrong is warned of once.

    Args:
        kind: the name of its package, a key of `TITLES`.
        folder: its own in the run folder; made where there is none.
        run_name: of the run, for people.
        start_step: steps that the run continues after; 0 begins a new run in the tracker.
        close_s: seconds that `close` waits at most.
        module: what the process runs.

    Raises:
        UserError, OSError: if the folder cannot be made, or the process not be started.
    """

    def __init__(
        self,
        kind: str,
        folder: Path,
        run_name: str,
        *,
        start_step: int = 0,
        close_s: float = CLOSE_S,
        module: str = _MODULE,
    ) -> None:
        self.name = TITLES[kind]
        self._close_s = close_s
        self._lines: queue.Queue[bytes | None] = queue.Queue(_MOST_WAITING)
        self._has_warned = False
        owned.make_folder(folder, "tracker folder")
        self._log_file = folder / LOG_FILE
        with owned.append_to_own_file(self._log_file) as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, kind, run_name, str(start_step)],
                cwd=folder,
                env=_environment(folder),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # the end of its input ends it, and no key of a terminal
            )
        self._thread = threading.Thread(target=self._hand_over, daemon=True)
        self._thread.start()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers by tag."""
        self._put("scalars", step=step, values=dict(values))

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Record a text."""
        self._put("text", step=step, tag=tag, markdown=markdown)

    def image(self, step: int, tag: str, png: bytes) -> None:
        """Record a PNG file."""
        self._put("image", step=step, tag=tag, png=base64.b64encode(png).decode())

    def histogram(self, step: int, tag: str, values: Sequence[float]) -> None:
        """Record the distribution of numbers."""
        self._put("histogram", step=step, tag=tag, values=list(values))

    def hyperparameters(self, settings: Mapping[str, bool | int | float | str]) -> None:
        """Record what a start of the run is made with."""
        self._put("hyperparameters", settings=dict(settings))

    def event(self, step: int, time: datetime, text: str) -> None:
        """Record that something happened."""
        self._put("event", step=step, time=time.isoformat(timespec="seconds"), text=text)

    def close(self) -> None:
        """Wait until all is written, for a while; then end the process."""
        deadline = time.monotonic() + self._close_s
        if self._process.poll() is None:  # else nothing takes what is in the queue any more
            with contextlib.suppress(queue.Full):
                self._lines.put(None, timeout=self._close_s)
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # with processes of the package
            self._process.wait()
            self._warn(f"was ended, since it took longer than {self._close_s:.0f} s to finish")
            return
        if self._process.returncode:
            self._warn(f"has ended early: {self._last_line()}")

    def _put(self, call: str, **values: Any) -> None:
        if self._has_warned and self._process.poll() is not None:
            return
        try:
            self._lines.put_nowait(json.dumps({"call": call, **values}).encode() + b"\n")
        except queue.Full:
            self._warn("does not keep up, and some of this run is left out there")

    def _hand_over(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        try:
            with pipe:
                while (line := self._lines.get()) is not None:
                    pipe.write(line)
                    pipe.flush()
        except OSError:  # its process is gone
            self._process.wait()
            self._warn(f"has ended early: {self._last_line()}")

    def _warn(self, what: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(f"{self.name} {what}; the run goes on, see {self._log_file}")

    def _last_line(self) -> str:
        try:
            with owned.open_owned(self._log_file) as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _END_OF_LOG_BYTES))
                lines = log.read().decode(errors="replace").split("\n")
        except OSError as error:
            return str(error)
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        return hide_secrets([last], os.environ)[0][:300]


def _environment(folder: Path) -> dict[str, str]:
    """Return the user's variables for the process of a tracker, without the secret of the run."""
    environment = {**_NO_TELEMETRY, **os.environ, "PYTHONSAFEPATH": "1"}
    if not any(os.environ.get(name) for name in _PLACES_OF_TRACKIO):
        environment["HF_HUB_OFFLINE"] = "1"  # it would ask the hub for the user's name
    environment.pop(RUN_KEY, None)
    named = environment.get("TRACKIO_DIR")
    environment["TRACKIO_DIR"] = os.path.abspath(named) if named else str(folder.absolute())
    return environment
