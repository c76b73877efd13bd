"""Stop requests: a signal asks for an end at the next step border, on all ranks together."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch

from diablo_ds import distributed


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """The run was asked to stop, and has saved a checkpoint to go on from."""


class StopRequests:
    """Remembers that this process was asked to stop.

    SIGUSR1, SLURM's warning ahead of a limit, counts from the start; SIGTERM and control-C only
    once there is training to save: before that they end the process at once.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        """Begin to listen."""
        self._set_handler(signal.SIGUSR1)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the signals to whom they belonged."""
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def start_training(self) -> None:
        """Let SIGTERM and control-C wait for the step border too; a second control-C does not."""
        self._set_handler(signal.SIGTERM)
        self._set_handler(signal.SIGINT)

    def agreed(self, device: torch.device | str) -> bool:
        """Return whether any rank was asked. Collective: every rank must call this."""
        asked = distributed.gather_floats([float(bool(self.signal_name))], device)
        return any(row[0] for row in asked)

    def _set_handler(self, number: signal.Signals) -> None:
        self._old[number] = signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
