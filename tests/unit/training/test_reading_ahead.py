"""Micro batches made by a thread: the same ones, its errors in the main thread, and its end."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from diablo_ds.config.run import RunConfig
from diablo_ds.data.batch_source import BatchSource
from diablo_ds.data.batches import Dealer
from diablo_ds.data.examples import Examples, TokenTable
from diablo_ds.data.labels import Example
from diablo_ds.ranks.stopping import Boundaries, StopRequests
from diablo_ds.training.exchange import Exchange
from diablo_ds.training.reading_ahead import ReadingAhead
from diablo_ds.training.step_clock import STEP, StepClock

CONFIG = RunConfig(micro_batch=2, global_batch=4, max_length=64, num_epochs=3, seed=3)
NUM_STEPS = 8
SLOW_S = 0.1


class _Gated:
    """Yields micro batches of a step; each one after the first waits until it is released."""

    def __init__(self) -> None:
        self.has_begun, self.is_released = threading.Event(), threading.Event()
        self.num_asked = 0

    def step(self, step):
        for _ in range(3):
            self.num_asked += 1
            yield step
            self.has_begun.set()
            assert self.is_released.wait(60)


class _Slow:
    """Steps without micro batches, from a disk that takes its time."""

    def step(self, step):
        time.sleep(SLOW_S)
        return iter(())


def _source(**changes) -> BatchSource:
    rows = [Example([i] * n, [i] * n) for i, n in enumerate([5, 3, 9, 1, 7, 2, 8, 4, 6, 10])]
    table = TokenTable.from_examples(rows)
    config = replace(CONFIG, **changes)
    examples = Examples(table, np.arange(len(table)), table.lengths(), "test")
    return BatchSource(examples, config, Dealer(config, 256, 0, 1))


def _exchange(source) -> Exchange:
    boundaries = Boundaries(StopRequests(), "cpu")
    return Exchange(source, boundaries, num_steps=NUM_STEPS, failure=lambda: None)


def _steps(exchange, start=0):
    """Return the micro batches that a run takes from a step on."""
    exchange.open(start)
    taken = []
    for _ in range(start, NUM_STEPS):
        exchange.read_ahead()
        taken.append(exchange.micro_batches)
        exchange.receive([exchange.message()])
        exchange.check()
    return taken


def _assert_equal(steps, others):
    assert len(steps) == len(others)
    for batches, expected in zip(steps, others, strict=True):
        assert len(batches) == len(expected)
        for batch, other in zip(batches, expected, strict=True):
            assert torch.equal(batch.input_ids, other.input_ids)
            assert torch.equal(batch.labels, other.labels)
            assert batch.num_tokens == other.num_tokens


@pytest.mark.parametrize("changes", [{}, {"packing": True}, {"group_by_length": True}])
def test_order_and_labels_are_those_of_the_source_also_of_a_resumed_run(changes):
    taken = _steps(_exchange(_source(**changes)))
    _assert_equal(taken, [list(_source(**changes).step(step)) for step in range(NUM_STEPS)])
    _assert_equal(_steps(_exchange(_source(**changes)), start=3), taken[3:])


def test_a_step_is_read_once_and_kept_only_until_it_is_taken():
    source = _Gated()
    ahead = ReadingAhead(source, "cpu")
    ahead.begin(0)
    ahead.begin(0)  # it is begun once
    assert source.has_begun.wait(60)
    source.is_released.set()
    assert ahead.result() == [0, 0, 0]
    assert source.num_asked == 3
    assert ahead._batches == []


def test_an_error_of_the_thread_is_raised_where_its_batches_are_awaited():
    class Failing:
        def step(self, step):
            yield step
            raise ZeroDivisionError("of the thread")

    exchange = _exchange(Failing())
    with pytest.raises(ZeroDivisionError, match="of the thread"):
        exchange.open(0)


def test_the_end_of_a_run_ends_the_thread_at_its_next_micro_batch():
    source = _Gated()
    ahead = ReadingAhead(source, "cpu")
    ahead.begin(0)
    assert source.has_begun.wait(60)
    closing = threading.Thread(target=ahead.close)
    closing.start()
    while not ahead._is_closed:
        time.sleep(0.001)
    source.is_released.set()
    closing.join(60)
    assert not closing.is_alive()
    assert "batches of step 1" not in {thread.name for thread in threading.enumerate()}
    assert source.num_asked == 2  # the second was under way; the third is not asked for


def test_a_slow_source_is_seen_in_the_wait_and_in_the_time_of_the_step():
    clock, exchange = StepClock(), _exchange(_Slow())
    exchange.open(0)
    exchange.read_ahead()
    exchange.receive([exchange.message()])
    seconds = clock.finish_step()[STEP]
    assert 1.8 * SLOW_S <= exchange.wait_s <= seconds
