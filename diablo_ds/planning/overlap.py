"""Gathers of ZeRO-3 beside computing: when each begins and ends, and what waits for it.

A model of two queues, written down in docs/planning.md; not checked on several GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diablo_ds.planning.gathers import Round, Visit


@dataclass(frozen=True)
class LayerOverlap:
    """One decoder layer's gather beside the computing of a layer, in seconds and bytes."""

    gather_bytes: int
    """As the weights are after the gather."""
    gather: float
    """Seconds of one gather; forward and backward each take one."""
    forward: float
    """Seconds that one layer computes in the forward."""
    backward: float
    """The same in the backward, without recomputation."""
    tokens_to_hide: int
    """Tokens of a micro batch from which on the forward of a layer takes as long as its gather."""

    @property
    def is_hidden(self) -> bool:
        """Whether both gathers of a layer fit beside the computing of its neighbor."""
        return self.gather <= min(self.forward, self.backward)


def visit_seconds(
    visits: Sequence[Visit], sizes: Sequence[int], forward: float, backward: float, head: float
) -> list[float]:
    """Return the seconds that each visit of a micro step computes.

    Args:
        visits: of a micro step, decoder layers as leaves: all forward, then all backward.
        sizes: elements of each parameter.
        forward: seconds of one decoder layer's forward.
        backward: of one layer's backward, its share of recomputation included.
        head: of the loss head, forward and backward, which run at once.
    """
    leaves = [number for number, visit in enumerate(visits) if visit.is_leaf]
    half = len(leaves) // 2
    seconds = [0.0] * len(visits)
    for place, number in enumerate(leaves):
        seconds[number] = forward if place < half else backward
    if leaves:
        # Between the two lie the modules after the layers; the head is the largest of them.
        between = range(leaves[half - 1] + 1, leaves[half] if half < len(leaves) else len(visits))
        if between:
            owner = max(between, key=lambda n: sum(sizes[p] for p in visits[n].parameters))
            seconds[owner] += head
        else:
            seconds[leaves[half - 1]] += head
    return seconds


def play(
    rounds: Sequence[Round], compute: Sequence[float], seconds: Callable[[int], float]
) -> tuple[float, float]:
    """Return how long a micro step's gathers take, and how long computing waits for them.

    Computing and gathering are one queue each. A gather begins when the one before it has ended,
    and no earlier than the visit that asks for it: the host is not counted on to run ahead of the
    GPU. A visit computes when all that it uses has arrived.

    Args:
        rounds: what each visit gathers.
        compute: seconds that each visit computes.
        seconds: of one gather of a number of elements.
    """
    clock = free = busy = waited = 0.0
    arrived = [0.0] * len(rounds)

    def gather(num_elements: int) -> float:
        nonlocal free, busy
        took = seconds(num_elements)
        free = max(clock, free) + took
        busy += took
        return free

    for number, (this, computing) in enumerate(zip(rounds, compute, strict=True)):
        begin = clock
        if this.waits_for >= 0:
            begin = max(begin, arrived[this.waits_for])
        if this.now:
            begin = max(begin, gather(this.now))
        waited += begin - clock
        clock = begin
        if this.ahead:
            arrived[number] = gather(this.ahead)
        clock += computing
    return busy, waited
