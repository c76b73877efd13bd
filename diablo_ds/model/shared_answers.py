"""Answers of all ranks, exchanged now and then while each rank works on its own part."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from diablo_ds.ranks import distributed

EXCHANGE_S = 10.0
"""Seconds between exchanges: what an interruption can lose of the other ranks' answers. In an
exchange a rank waits for the end of another one's forward."""


class SharedAnswers:
    """Hands each answer to a function on every rank: own ones at once, others as they are told.

    Args:
        on_answer: called with the index of each request and its answer.
    """

    def __init__(self, on_answer: Callable[[int, Any], object]) -> None:
        self._on_answer = on_answer
        self._untold: dict[int, Any] = {}
        self._next = time.monotonic() + EXCHANGE_S

    def add(self, index: int, answer: Any) -> None:
        """Take an answer of this rank."""
        self._untold[index] = answer
        self._on_answer(index, answer)

    @property
    def is_due(self) -> bool:
        """Whether it is time for an exchange."""
        return time.monotonic() >= self._next

    def exchange(self, *, is_done: bool) -> bool:
        """Tell the other ranks the answers since the last exchange, and take theirs.

        Collective: every rank must call this, also those that have no more answers.

        Args:
            is_done: whether this rank has no more answers.

        Returns:
            Whether all ranks are done.
        """
        told, self._untold = distributed.gather_values((is_done, self._untold)), {}
        self._next = time.monotonic() + EXCHANGE_S
        for rank, (_, answers) in enumerate(told):
            if rank != distributed.rank():
                for index, answer in answers.items():
                    self._on_answer(index, answer)
        return all(done for done, _ in told)
