"""The model of a run answers in between two steps, without a trace in its training."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from diablo_ds.data.text.tokenization import Tokenizer
from diablo_ds.evaluation.engine import Engine as EvaluationEngine
from diablo_ds.ranks import distributed
from diablo_ds.zero.engine import Engine


class TrainedModel:
    """The model that is trained, as one that answers.

    The ranks answer in step, so that a request to stop reaches all of them ahead of the same
    forward. Random numbers, the training mode and the deltas are afterwards as they were.

    Args:
        engine: the run's.
        tokenizer: the model's.
        is_stopping: tells whether this rank was asked to stop.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, is_stopping: Callable[[], bool]
    ) -> None:
        self._engine = engine
        self._evaluation = EvaluationEngine(
            engine.model,
            tokenizer.encoder.decode,
            in_step=not distributed.is_alone(),
            is_stopping=is_stopping,
        )

    @contextlib.contextmanager
    def answering(self, what: str) -> Iterator[EvaluationEngine]:
        """Yield what answers requests. Collective.

        Args:
            what: see `diablo_ds.zero.engine.Engine.evaluating`.
        """
        engine = self._engine
        with _same_random_numbers(), engine.memory.apart(), engine.evaluating(what):
            self._evaluation.renew_limits()
            yield self._evaluation
        engine.gather_deltas()


@contextlib.contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Give every random generator of the process the state back that it had."""
    own, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002 - others may use it
    devices: list[Any] = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(own)
        np.random.set_state(numbers)  # noqa: NPY002 - see above
