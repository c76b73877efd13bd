"""Micro batches one step ahead, and when what went wrong with them ends a run."""

from __future__ import annotations

import pytest
import torch

from diablo_ds.data.batches import MicroBatch
from diablo_ds.data.labels import IGNORE_LABEL
from diablo_ds.errors import UserError
from diablo_ds.ranks.stopping import Boundaries, StopAgreed, StopRequests
from diablo_ds.training.exchange import Exchange
from diablo_ds.training.step import Counts, total

NUM_STEPS = 3


class _Source:
    """Step k has k + 1 micro batches of one row with three targets; one step may fail."""

    def __init__(self, failing: int | None = None) -> None:
        self.failing = failing
        self.asked: list[int] = []

    def step(self, step: int) -> list[MicroBatch]:
        self.asked.append(step)
        if step == self.failing:
            raise UserError("a row must fit its corpus")
        labels = torch.tensor([[IGNORE_LABEL, 1, 2, 3, IGNORE_LABEL]])
        return [MicroBatch(labels, labels, None, 4)] * (step + 1)


def _exchange(source, requests=None, failure=lambda: None):
    boundaries = Boundaries(requests or StopRequests(), "cpu")
    return Exchange(source, boundaries, num_steps=NUM_STEPS, failure=failure)


def test_each_step_is_built_once_and_one_step_ahead():
    source = _Source()
    exchange = _exchange(source)
    exchange.open(0)
    for step in range(NUM_STEPS):
        exchange.check()
        assert source.asked == list(range(step + 1))
        assert len(exchange.micro_batches) == step + 1
        assert exchange.totals == Counts(3 * (step + 1), 4 * (step + 1), step + 1)
        exchange.receive([exchange.message()])
    assert source.asked == list(range(NUM_STEPS))  # there is no step after the last
    exchange.check()


def test_a_resumed_run_asks_for_its_own_first_step():
    source = _Source()
    exchange = _exchange(source)
    exchange.open(2)
    assert source.asked == [2]
    assert exchange.totals.micro_batches == 3


def test_what_fails_ahead_of_a_step_ends_the_run_after_the_step_before():
    exchange = _exchange(_Source(failing=1))
    exchange.open(0)
    exchange.check()
    message = exchange.message()  # does not raise: step 0 is still to be finished
    exchange.receive([message])
    with pytest.raises(UserError, match="a row must fit"):
        exchange.check()


def test_a_failed_report_and_a_request_are_told_with_the_next_message():
    errors, requests = [], StopRequests()
    exchange = _exchange(_Source(), requests, lambda: errors[0] if errors else None)
    exchange.open(0)
    requests.signal_name = "SIGUSR1"
    exchange.check()
    exchange.receive([exchange.message()])
    with pytest.raises(StopAgreed):
        exchange.check()
    errors.append(OSError(28, "No space left on device"))
    exchange.receive([exchange.message()])
    with pytest.raises(OSError, match="No space left"):
        exchange.check()


def test_ranks_with_other_numbers_of_micro_batches_are_refused():
    assert total([(3, 4, 2, 16), (5, 6, 2, 20)]) == Counts(8, 10, 2, 36)
    with pytest.raises(RuntimeError, match=r"equally many micro batches; got \[2, 1\]"):
        total([(3, 4, 2, 16), (5, 6, 1, 36)])
