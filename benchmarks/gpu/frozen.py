"""The limit: forward and backward to the inputs through the frozen base, loss included."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

from benchmarks.gpu import levers
from benchmarks.gpu.levers import Lever
from benchmarks.gpu.models import (
    COMPILED,
    WORKLOADS,
    flops_per_token,
    profiled_step,
    random_model,
    random_tokens,
    timed_steps,
)
from benchmarks.gpu.ours import COMPILE_LIMIT_S, COMPILERS
from benchmarks.gpu.records import Case
from diablo_ds.data.batches import MicroBatch
from diablo_ds.model.architecture import build_meta_model
from diablo_ds.model.loss_head import install_loss_head, loss_of


class _Frozen:
    """No adapter, no optimizer, no DeepSpeed."""

    def __init__(self, kind: str, scale: str) -> None:
        self.workload = WORKLOADS[scale][kind]

    @cached_property
    def model(self) -> Any:
        config = self.workload.config()
        model = random_model(config)
        model.enable_input_require_grads()
        install_loss_head(model, build_meta_model(config))
        return model

    @cached_property
    def take_step(self) -> Callable[[], None]:
        workload, model = self.workload, self.model
        ids = random_tokens(workload.config(), workload.micro_batch, workload.length)
        batch = MicroBatch(ids, ids, None, ids.numel())
        return lambda: loss_of(model, batch).backward()

    def measure(self, using: Sequence[Lever], profile: bool) -> dict[str, Any]:
        workload = self.workload
        num_tokens = workload.micro_batch * workload.length
        flops = flops_per_token(self.model, workload.config(), workload.length)
        with levers.switched(self.model, using):
            figures = timed_steps(self.take_step, num_tokens, flops, lever=not profile)
            return figures | (profiled_step(self.take_step) if profile else {})


def _cases(kind: str, scale: str) -> Iterator[Case]:
    frozen = _Frozen(kind, scale)
    yield Case("as it is", partial(frozen.measure, (), True))
    yield Case(COMPILED, partial(frozen.measure, COMPILERS, True), COMPILE_LIMIT_S)
    yield Case("liger", partial(frozen.measure, (levers.liger,), False))


def step_cases(scale: str) -> Iterator[Case]:
    """Yield the 8B shape."""
    return _cases("step", scale)


def slice_cases(scale: str) -> Iterator[Case]:
    """Yield the slice of the 70B shape."""
    return _cases("slice", scale)
