"""One layout of a run on a cluster, and which of several is best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diablo_ds.config.run import RunConfig
from diablo_ds.model.recomputation import Recomputation
from diablo_ds.planning.communication import LinkBytes
from diablo_ds.planning.hardware import ClusterSize
from diablo_ds.planning.memory import Memory
from diablo_ds.planning.overlap import LayerOverlap
from diablo_ds.planning.step_time import StepTime
from diablo_ds.zero.traffic import Collective

TIGHT_SHARE = 0.05
"""A layout that leaves less of a GPU's memory, the reserve taken, may not fit after all."""
EQUAL_SPEED = 0.03
"""Rates that differ by less count as equal: times are estimates."""


@dataclass(frozen=True)
class Variant:
    """A ZeRO stage, and what goes with it."""

    name: str
    stage: int
    hpz: bool = False
    offload: bool = False

    @property
    def template(self) -> str:
        """The file of `ds_configs/` that it starts from."""
        return f"zero{self.stage}{'_offload' if self.offload else ''}.json"


VARIANTS = (
    Variant("ZeRO-0", 0),
    Variant("ZeRO-1", 1),
    Variant("ZeRO-2", 2),
    Variant("ZeRO-3", 3),
    Variant("ZeRO-3 hpZ", 3, hpz=True),
    Variant("ZeRO-3 offload", 3, offload=True),
)


@dataclass(frozen=True)
class Candidate:
    """One way to lay a run out, and what it would need."""

    variant: Variant
    run_config: RunConfig
    cluster: ClusterSize
    recomputation: Recomputation
    num_layers: int
    memory: Memory
    host_bytes: int
    traffic: dict[Collective, int]
    links: LinkBytes
    time: StepTime
    overlap: LayerOverlap | None
    """A layer's gather beside its computing; None where nothing is gathered."""
    flops_per_token: float
    """Of forward and backward to the inputs."""

    @property
    def fits(self) -> bool:
        """Whether GPU and node have the memory."""
        return (
            self.memory.total <= self.cluster.usable_bytes
            and self.host_bytes <= self.cluster.node_memory_bytes
        )

    @property
    def is_tight(self) -> bool:
        """Whether it fits with less than `TIGHT_SHARE` of the GPU's memory left."""
        taken = self.memory.total + self.cluster.reserved_bytes
        return self.fits and taken > (1 - TIGHT_SHARE) * self.cluster.memory_bytes

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of all ranks together, if every sequence is full."""
        return self.run_config.global_batch * self.run_config.max_length / self.time.total

    @property
    def tokens_per_s_per_gpu(self) -> float:
        """Tokens per second of one rank."""
        return self.tokens_per_s / self.cluster.world_size

    @property
    def mfu(self) -> float:
        """Share of the 16-bit peak that forward and backward reach, without recomputation."""
        return self.tokens_per_s_per_gpu * self.flops_per_token / self.cluster.flops

    @property
    def recomputed(self) -> str:
        """Which decoder layers are recomputed, in words."""
        count = self.recomputation.num_layers
        if not count:
            return "none"
        return "all" if count == self.num_layers else f"{count} of {self.num_layers}"


def fastest(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the fastest candidate, or None if there are none.

    Among those of equal speed, one without offload is taken first, then one that is not tight, then
    the one with the largest micro batch, whose matrix products a GPU computes better than the
    estimate tells.
    """
    most = max((c.tokens_per_s for c in candidates), default=0.0)
    return max(
        (c for c in candidates if c.tokens_per_s >= most * (1 - EQUAL_SPEED)),
        key=_preference,
        default=None,
    )


def _preference(candidate: Candidate) -> tuple[bool, bool, int, float, int]:
    return (
        not candidate.variant.offload,
        not candidate.is_tight,
        candidate.run_config.micro_batch,
        candidate.tokens_per_s,
        -candidate.memory.total,
    )
