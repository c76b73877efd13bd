"""The micro batches of the next step, made by a thread while the step before it is taken."""

from __future__ import annotations

import threading
import time

import torch

from diablo_ds.data.batches import MicroBatch, pinned
from diablo_ds.data.training_batches import TrainingBatches

CLOSE_LIMIT_S = 10.0
"""How long the end of a run waits for a thread that reads, as from a disk that hangs."""


class ReadingAhead:
    """Makes the micro batches of one step at a time, each step's in a thread of its own.

    A thread runs between `begin` and `result` only. What happens between steps, such as evaluating,
    therefore never shares a tokenizer with it, and no more than one step is held ahead.

    Args:
        source: of micro batches.
        device: where the model is; for a GPU the micro batches are in pinned memory.
    """

    def __init__(self, source: TrainingBatches, device: torch.device | str) -> None:
        self.wait_s = 0.0
        """How long the last `result` waited for the thread, in seconds."""
        self._source, self._device = source, torch.device(device)
        self._thread: threading.Thread | None = None
        self._batches: list[MicroBatch] = []
        self._error: BaseException | None = None
        self._is_closed = False

    def begin(self, step: int) -> None:
        """Let a thread make the micro batches of a step, unless one does already."""
        if self._thread is None:
            name = f"batches of step {step + 1}"
            self._thread = threading.Thread(target=self._make, args=[step], name=name, daemon=True)
            self._thread.start()

    def result(self) -> list[MicroBatch]:
        """Wait for the micro batches that were begun, and return them.

        Raises:
            Exception: what the source raised, in the thread that calls this.
        """
        assert self._thread is not None, "begin comes first"
        start = time.perf_counter()
        self._thread.join()
        self.wait_s = time.perf_counter() - start
        batches, error = self._batches, self._error
        self._thread, self._batches, self._error = None, [], None
        if error is not None:
            raise error
        return batches

    def close(self) -> None:
        """End the thread at its next micro batch."""
        self._is_closed = True
        if self._thread is not None:
            self._thread.join(CLOSE_LIMIT_S)

    def _make(self, step: int) -> None:
        try:
            if self._device.type == "cuda":  # a new thread would take the first GPU
                torch.cuda.set_device(self._device)
            for batch in self._source.step(step):
                if self._is_closed:
                    return
                self._batches.append(pinned(batch) if self._device.type == "cuda" else batch)
        except BaseException as error:  # told to the thread that waits
            self._error = error
