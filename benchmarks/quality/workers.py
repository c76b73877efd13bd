"""Processes that train, each one spec after another; what they say goes to one queue."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality.spec import Spec

_TAIL_CHARACTERS = 1500
_END_S = 10.0


@dataclass(frozen=True)
class Message:
    """What a worker said."""

    worker: Worker
    content: Mapping[str, Any] | None
    """None: its process has ended."""


class Worker:
    """A process in a session of its own, so that Ctrl-C reaches the study alone.

    Args:
        command: reads specs as JSON lines, and writes lines with "progress", "record" or "error".
        log: file for its stderr, which is appended to.
        messages: where messages go.
        environment: variables to set.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        messages: queue.Queue[Message],
        environment: Mapping[str, str],
    ) -> None:
        self.log, self._messages = log, messages
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with contextlib.suppress(ValueError):  # a library's own line
                    content = json.loads(line)
                    if isinstance(content, dict):
                        self._messages.put(Message(self, content))
        self._process.wait()
        self._messages.put(Message(self, None))

    def train(self, spec: Spec) -> None:
        """Let it train; the answer is a message."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then a message says that it has ended
            self._process.stdin.write(json.dumps(spec.to_json()).encode() + b"\n")
            self._process.stdin.flush()

    def why_ended(self) -> str:
        """Return in words how its process ended."""
        code = self._process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        text = self.log.read_text(errors="replace")[-_TAIL_CHARACTERS:].strip()
        return f"its process ended with {how}" + (f": {text}" if text else "")

    def kill(self) -> None:
        """End the process at once, with all that it started."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._listener.join()
        self._close_input()

    def close(self) -> None:
        """End the process once it has nothing to do."""
        self._close_input()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        self.kill()

    def _close_input(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
