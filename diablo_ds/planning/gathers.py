"""What ZeRO-3 gathers in a micro step: DeepSpeed's fetch, prefetch and release, step by step.

DeepSpeed records the order of modules in a forward and backward, and from then on decides with it
which weights to gather ahead and which to keep for a later use. The same decisions here, on sizes
alone, tell how often each weight crosses the network and how much is unsharded at once.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple


class Visit(NamedTuple):
    """One module's turn in a forward or backward."""

    parameters: tuple[int, ...]
    """Numbers of the parameters that it owns, ascending; of its children too, if it is a leaf."""
    below: tuple[int, ...]
    """The same with its children's, leaf or not."""
    is_leaf: bool
    """Whether it is fetched in one gather, as decoder layers are."""


class Limits(NamedTuple):
    """DeepSpeed's stage-3 settings that decide about gathers, in elements."""

    prefetch: int
    """How much is gathered ahead."""
    max_live: int
    """How much may be unsharded at once before nothing is gathered ahead."""
    reuse_distance: int
    """A weight is kept if it is used again within this number of elements."""


class Round(NamedTuple):
    """What one visit of a module gathers, in elements of partitioned weights."""

    now: int
    """Of the module itself, as far as nothing gathered them ahead: it waits for them."""
    ahead: int
    """Of modules that come later."""
    waits_for: int
    """The latest visit that gathered ahead what this one uses; -1 for none."""


class Gathers(NamedTuple):
    """What a micro step gathers."""

    counts: Counter[int]
    """How often, by the parameter's number."""
    most_elements: int
    """The most elements of partitioned weights that are unsharded at once."""
    most_ahead: int
    """The most elements of one visit's gathers: they lie in a flat buffer first."""
    rounds: tuple[Round, ...] = ()
    """Of each visit, in order."""


def simulate(
    visits: Sequence[Visit],
    sizes: Mapping[int, int],
    kept: Collection[int],
    limits: Limits,
    *,
    kept_at_first: bool = True,
) -> Gathers:
    """Return what a micro step gathers, once DeepSpeed knows the order of modules.

    DeepSpeed decides once what it releases after each module, in its first micro step with that
    knowledge. If that is the second one of the first optimizer step, the parameters that are kept
    unsharded later on are gathered in it one by one, and fill up the limits.

    Args:
        visits: modules in the order of a micro step.
        sizes: elements of each parameter.
        kept: parameters that are unsharded all the time.
        limits: DeepSpeed's settings.
        kept_at_first: whether those are unsharded in that first micro step already.
    """
    first = _Coordinator(visits, sizes, kept, limits, unsharded=kept if kept_at_first else ())
    state = _Coordinator(visits, sizes, kept, limits, unsharded=kept)
    state.releases = first.releases
    for coordinator in (first, state):
        for step, visit in enumerate(visits):
            coordinator.fetch(step, visit)
            coordinator.release(step + 1, visit)
    rounds = tuple(state.rounds)
    return Gathers(state.counts, state.most_elements, state.most_ahead, rounds)


class _Coordinator:
    """The part of DeepSpeed's parameter coordinator that decides."""

    def __init__(
        self,
        visits: Sequence[Visit],
        sizes: Mapping[int, int],
        kept: Collection[int],
        limits: Limits,
        unsharded: Collection[int],
    ) -> None:
        self.visits, self.sizes, self.kept, self.limits = visits, sizes, frozenset(kept), limits
        self.releases: dict[int, set[int]] = {}
        self.queue = deque((p, i) for i, visit in enumerate(visits) for p in visit.parameters)
        self.fetched_for: dict[int, int] = {}
        self.unsharded: set[int] = set(unsharded)
        self.num_unsharded = 0
        self.counts: Counter[int] = Counter()
        self.most_elements = self.most_ahead = 0
        self.rounds: list[Round] = []
        self.gathered_at: dict[int, int] = {}

    def fetch(self, step: int, visit: Visit) -> None:
        """Gather what a module needs now, then what comes next."""
        now = [p for p in visit.parameters if p not in self.unsharded]
        num_now = self._gather(now)
        for parameter in now:
            self.gathered_at[parameter] = -1
        waits_for = max((self.gathered_at.get(p, -1) for p in visit.parameters), default=-1)
        not_ahead = {p for p in visit.parameters if self.fetched_for.get(p, -1) < step}
        while self.queue and not_ahead:
            parameter, used_at = self.queue.popleft()
            self.fetched_for[parameter] = used_at
            not_ahead.discard(parameter)
        room = min(self.limits.max_live - self.num_unsharded, self.limits.prefetch)
        ahead: list[int] = []
        num_ahead = 0
        while self.queue and num_ahead < room:
            parameter, used_at = self.queue.popleft()
            self.fetched_for[parameter] = max(self.fetched_for.get(parameter, -1), used_at)
            if parameter not in self.unsharded and parameter not in ahead:
                ahead.append(parameter)
                num_ahead += self.sizes[parameter]
        self._gather(ahead)
        self.gathered_at |= dict.fromkeys(ahead, step)
        self.rounds.append(Round(num_now, num_ahead, waits_for))

    def _gather(self, chosen: Collection[int]) -> int:
        num_elements = sum(self.sizes[p] for p in chosen)
        self.counts.update(chosen)
        self.unsharded.update(chosen)
        self.num_unsharded += num_elements
        self.most_elements = max(self.most_elements, self.num_unsharded)
        self.most_ahead = max(self.most_ahead, num_elements)
        return num_elements

    def release(self, next_step: int, visit: Visit) -> None:
        """Drop what a module used, unless it is used again soon."""
        if next_step not in self.releases:
            self.releases[next_step] = self._choose_releases(next_step, visit)
        dropped = self.releases[next_step] & self.unsharded
        self.unsharded -= dropped
        self.num_unsharded -= sum(self.sizes[p] for p in dropped)

    def _choose_releases(self, next_step: int, visit: Visit) -> set[int]:
        chosen = {
            p
            for p in visit.parameters
            if p not in self.kept and self.fetched_for.get(p, -1) <= next_step
        }
        distance = 0
        for later in self.visits[next_step:]:
            if distance >= self.limits.reuse_distance or not chosen:
                break
            # DeepSpeed looks at children as the module does that is released, not the later one.
            own = () if later.is_leaf else later.parameters
            seen = later.below if visit.is_leaf else own
            chosen -= set(seen)
            distance += sum(self.sizes[p] for p in seen)
        return chosen
