"""Micro batch and recomputation for the GPUs that a run has, by the numbers of a plan."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.model.recomputation import Recomputation
from diablo_ds.planning.candidate import Candidate, Variant, fastest
from diablo_ds.planning.hardware import (
    DEFAULT_RESERVE_GB,
    GB,
    Assumptions,
    ClusterSize,
    find_device,
)
from diablo_ds.planning.plan import Planner, search_recomputation
from diablo_ds.ranks.nodes import NodeSizes
from diablo_ds.zero.ds_config import complete_ds_config, offload_device, zero_stage


@dataclass(frozen=True)
class Gpus:
    """The GPUs of a run, one per rank; the least of them counts for all."""

    name: str
    """What the driver calls them."""
    memory_bytes: int
    taken_bytes: int
    """What other processes and the driver have taken of one."""
    world_size: int
    ranks_per_node: int

    def cluster(self, *, with_taken: bool) -> ClusterSize:
        """Return them as a plan sees them.

        Args:
            with_taken: whether what others have taken is reserved too.
        """
        device = find_device(self.name, self.memory_bytes)
        reserved = DEFAULT_RESERVE_GB * GB + self.taken_bytes * with_taken
        return ClusterSize(
            num_nodes=-(-self.world_size // self.ranks_per_node),
            ranks_per_node=self.ranks_per_node,
            memory_bytes=self.memory_bytes,
            reserved_bytes=min(reserved, self.memory_bytes - 1),
            node_memory_bytes=float("inf"),  # which a run does not look at
            flops=device.tflops * 1e12,
            memory_bandwidth=device.memory_gbs * GB,
            inside_bandwidth=device.inside_gbs * GB,
            between_bandwidth=device.between_gbs * GB,
        )


class Fitting:
    """Plans one run, of which all but micro batch and recomputation is decided.

    Args:
        run_config: the run config.
        model_config: the model's Hugging Face config.
        policy: the DeepSpeed config file's values.
        gpus: what the run has.
        num_blocks: block count of each target layer by full module name; those of the run config by
            default.
        some_layers: whether the model can recompute some of its decoder layers, or only all.
    """

    def __init__(
        self,
        run_config: RunConfig,
        model_config: Any,
        policy: Mapping[str, Any],
        gpus: Gpus,
        *,
        num_blocks: dict[str, int] | None = None,
        some_layers: bool = True,
    ) -> None:
        self._run_config, self._policy, self._gpus = run_config, policy, gpus
        self._some_layers = some_layers
        self._planner = Planner(model_config, run_config, Assumptions(), num_blocks)

    def given(self, micro_batch: int, recomputation: Recomputation) -> Candidate:
        """Return what a micro batch needs, 0 where it is counted in tokens; others' memory is free.

        Raises:
            UserError: if the micro batch does not go with the DeepSpeed config.
        """
        return self._evaluate_at(micro_batch, with_taken=False)(recomputation)

    def search(
        self, micro_batches: Sequence[int], recomputation: Recomputation | None = None
    ) -> Candidate | None:
        """Return the fastest of those that recompute no more layers than they need.

        Of each micro batch that is the one with the fewest recomputed layers that leave
        `diablo_ds.planning.candidate.TIGHT_SHARE` of the memory. Where there is none, less may be
        left; where nothing fits, it is the one that needs least.

        Args:
            micro_batches: to choose from; 0 where it is counted in tokens.
            recomputation: the only one to consider; by default it is chosen.

        Returns:
            None if no micro batch goes with the DeepSpeed config.
        """
        by_size: list[list[Candidate]] = []
        for size in micro_batches:
            # A DeepSpeed config may want another micro batch.
            with contextlib.suppress(UserError):
                by_size.append(self._of_micro_batch(size, recomputation))
        for suits in (_is_roomy, _fits):
            fewest = [
                min(fitting, key=lambda c: c.recomputation.num_layers)
                for found in by_size
                if (fitting := list(filter(suits, found)))
            ]
            if fewest:
                return fastest(fewest)
        everything = [c for found in by_size for c in found]
        return min(everything, key=lambda c: c.memory.total, default=None)

    def _of_micro_batch(self, size: int, recomputation: Recomputation | None) -> list[Candidate]:
        evaluate = self._evaluate_at(size, with_taken=True)
        if recomputation is not None:
            return [evaluate(recomputation)]
        found: dict[int, Candidate] = {}

        def evaluate_count(count: int) -> Candidate:
            if count not in found:
                found[count] = evaluate(Recomputation(count))
            return found[count]

        num_layers = evaluate_count(0).num_layers
        evaluate_count(num_layers)
        if self._some_layers:
            for suits in (_is_roomy, _fits):
                search_recomputation(evaluate_count, num_layers, suits)
        return list(found.values())

    def _evaluate_at(self, size: int, *, with_taken: bool) -> Callable[[Recomputation], Candidate]:
        """Return what plans this run at a micro batch."""
        run_config, world_size = self._run_config, self._gpus.world_size
        planned = _planned(run_config, size, world_size)
        complete = complete_ds_config(
            self._policy,
            dataclasses.replace(run_config, micro_batch=size),
            world_size=world_size,
            base=self._planner.model(planned).base,
            nodes=NodeSizes(self._gpus.ranks_per_node, self._gpus.memory_bytes),
            source="ds_config",
        )
        zero, stage = complete["zero_optimization"], zero_stage(complete)
        offload = offload_device(complete, "param") != "none"
        variant = Variant(f"ZeRO-{stage}", stage, offload=offload)
        cluster = self._gpus.cluster(with_taken=with_taken)
        return lambda recomputation: self._planner.evaluate(
            variant, cluster, planned, zero, recomputation
        )


def _fits(candidate: Candidate) -> bool:
    return candidate.fits


def _is_roomy(candidate: Candidate) -> bool:
    return candidate.fits and not candidate.is_tight


def _planned(run_config: RunConfig, size: int, world_size: int) -> RunConfig:
    """Return the run config with a micro batch; tokens count as the sequences that fill them."""
    if not run_config.micro_batch_tokens:
        return dataclasses.replace(run_config, micro_batch=size)
    rows = max(1, run_config.micro_batch_tokens // run_config.max_length)
    return dataclasses.replace(
        run_config, micro_batch=rows, micro_batch_tokens=0, global_batch=rows * world_size
    )
