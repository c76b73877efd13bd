"""A stop in the middle of a step, at every ZeRO stage: all ranks together, nothing is changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from diablo_ds.ranks.stopping import Boundaries, StopAgreed, StopRequests
from diablo_ds.training.step import evaluate, train_step
from tests.distributed.runner import run_distributed
from tests.distributed.training import (
    CONFIG,
    build,
    learning_rate,
    micro_batches,
    take_step,
)
from tests.tiny import save_model

pytestmark = pytest.mark.distributed
STAGES = ("zero0.json", "zero1.json", "zero2.json", "zero3.json", "zero3_offload.json")
BF16 = dataclasses.replace(CONFIG, precision="bf16", micro_batch=1)


class _Asking(Sequence[Any]):
    """Micro batches of a rank that is told to stop while it works on the second one."""

    def __init__(self, batches: Sequence[Any], requests: StopRequests, is_asked: bool) -> None:
        self.batches, self.requests, self.is_asked = batches, requests, is_asked

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: Any) -> Any:
        return self.batches[index]

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.batches):
            if self.is_asked and number == 2:
                self.requests.signal_name = "SIGTERM"
            yield batch


def _check(rank: int, folder: Path) -> None:
    for ds_file in STAGES:
        engine = build(folder, ds_file, BF16)
        undisturbed = [take_step(engine, step, BF16) for step in range(3)]
        after = engine.gather_state().deltas
        engine.close()

        engine = build(folder, ds_file, BF16)
        assert take_step(engine, 0, BF16) == undisturbed[0]
        before = engine.gather_state().deltas
        requests = StopRequests()
        boundaries = Boundaries(requests, engine.device, clock=lambda: 0.0)  # asks at every one
        asking = _Asking(micro_batches(1, BF16, rank, 2), requests, is_asked=rank == 1)
        assert len(asking) == 4
        with pytest.raises(StopAgreed):
            train_step(engine, asking, learning_rate(BF16, 1), boundaries=boundaries)
        assert all(delta.grad is None for delta in engine.deltas.values())
        _assert_equal(before, engine.gather_state().deltas)
        requests.signal_name = ""
        with pytest.raises(StopAgreed):
            evaluate(engine, asking, boundaries)
        # DeepSpeed, too, has forgotten the step: it can be taken.
        assert [take_step(engine, step, BF16) for step in (1, 2)] == undisturbed[1:], ds_file
        _assert_equal(after, engine.gather_state().deltas)
        engine.close()


def _assert_equal(one: Any, other: Any) -> None:
    for name, tensors in one.items():
        for key, value in tensors.items():
            assert torch.equal(value, other[name][key]), (name, key)


def test_ranks_stop_together_between_micro_batches_and_lose_no_finished_step(tmp_path):
    run_distributed(_check, 2, tmp_path, save_model(tmp_path / "model"))
