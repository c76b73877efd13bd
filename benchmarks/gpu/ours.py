"""This trainer's step: as it is, then with one lever at a time, then with several."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any

from benchmarks.gpu import levers, packing
from benchmarks.gpu.levers import Lever
from benchmarks.gpu.models import COMPILED, WORKLOADS
from benchmarks.gpu.records import Case
from benchmarks.gpu.sessions import Session
from diablo_ds.adapter.paths import DELTA_PATHS

COMPILE_LIMIT_S = 150.0


def path(name: str) -> Lever:
    """Return the lever of a formulation of the deltas' products."""
    return lambda model: levers.delta_path(model, name)


def path_of_mlp(name: str) -> Lever:
    """Return the lever of a formulation in the layers that are wider than the model."""
    return lambda model: levers.delta_path(model, name, from_width=model.config.hidden_size + 1)


def flash(model: Any) -> contextlib.AbstractContextManager[None]:
    """Return the lever of attention by PyTorch's own flash kernel."""
    return levers.flash_attention()


def chunk(megabytes: int) -> Lever:
    """Return the lever of the loss's chunk."""
    return lambda model: levers.loss_chunk(megabytes * 2**20)


ALONE: dict[str, Sequence[Lever]] = {
    "compiled": (levers.compiled,),
    "compiled loss": (levers.compiled_loss,),
    "liger": (levers.liger,),
    **{name: (path(name),) for name in DELTA_PATHS if name != "fused"},
    "flash attention": (flash,),
    "loss chunk 64 MiB": (chunk(64),),
    "loss chunk 1024 MiB": (chunk(1024),),
}
COMPILERS: Sequence[Lever] = (levers.compiled_loss, levers.compiled)
TOGETHER: dict[str, Sequence[Lever]] = {
    COMPILED: COMPILERS,
    **{f"{COMPILED}, {name}": (path(name), *COMPILERS) for name in DELTA_PATHS if name != "fused"},
    f"{COMPILED}, prefilled, in the MLP triton_prefilled": (
        path("prefilled"),
        path_of_mlp("triton_prefilled"),
        *COMPILERS,
    ),
    "liger, compiled loss, prefilled": (path("prefilled"), levers.compiled_loss, levers.liger),
}
_OF_OTHER_STAGES = (COMPILED, f"{COMPILED}, prefilled", f"{COMPILED}, summed")


class _Lazy:
    """A session that is built when the first case needs it."""

    def __init__(self, kind: str, scale: str, stage: int) -> None:
        self.kind, self.scale, self.stage = kind, scale, stage

    @cached_property
    def session(self) -> Session:
        return Session(WORKLOADS[self.scale][self.kind], self.stage)

    def measure(self, using: Sequence[Lever] = (), **options: Any) -> dict[str, Any]:
        with levers.switched(self.session.model, using):
            return self.session.measure(**options)

    def recomputed(self, using: Sequence[Lever] = ()) -> dict[str, Any]:
        self.session.recompute(True)
        try:
            return self.measure(using, lever=True)
        finally:
            self.session.recompute(False)

    def case(
        self, name: str, using: Sequence[Lever], *, lever: bool = True, profile: bool = False
    ) -> Case:
        limit = COMPILE_LIMIT_S if levers.compiled in using else 60.0
        return Case(name, partial(self.measure, using, lever=lever, profile=profile), limit)


def lever_cases(scale: str) -> Iterator[Case]:
    """Yield the 8B shape under ZeRO-2 with one lever at a time, and other layouts of a batch."""
    lazy = _Lazy("step", scale, 2)
    yield lazy.case("as it is", (), lever=False, profile=True)
    for name, using in ALONE.items():
        yield lazy.case(name, using)
    yield Case("micro batch 1", partial(lazy.measure, (), micro_batch=1, lever=True))
    yield Case("recomputed", lazy.recomputed)
    for name, batch in packing.batches(scale).items():
        yield Case(name, lambda batch=batch: packing.measure(lazy.session, batch))  # type: ignore[misc]


def zero2_cases(scale: str) -> Iterator[Case]:
    """Yield the 8B shape under ZeRO-2 with several levers together."""
    lazy = _Lazy("step", scale, 2)
    yield lazy.case("as it is", (), lever=False, profile=True)
    for name, using in TOGETHER.items():
        yield lazy.case(name, using, lever=name != COMPILED, profile=name == COMPILED)


def zero3_cases(scale: str) -> Iterator[Case]:
    """Yield the 8B shape under ZeRO-3."""
    lazy = _Lazy("step", scale, 3)
    yield lazy.case("as it is", (), lever=False)
    yield lazy.case(COMPILED, TOGETHER[COMPILED])


def zero0_cases(scale: str) -> Iterator[Case]:
    """Yield the 8B shape under ZeRO-0."""
    lazy = _Lazy("step", scale, 0)
    yield lazy.case("as it is", (), lever=False)


def slice_cases(scale: str) -> Iterator[Case]:
    """Yield the slice of the 70B shape under ZeRO-2."""
    lazy = _Lazy("slice", scale, 2)
    yield lazy.case("as it is", (), lever=False, profile=True)
    for name in _OF_OTHER_STAGES:
        yield lazy.case(name, TOGETHER[name], lever=name != COMPILED)
