"""Every layout of a run on a cluster: what each needs, how long its step takes, which is best."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from diablo_ds.config.choices import DS_CONFIGS
from diablo_ds.config.run import RunConfig
from diablo_ds.files.atomic import read_json
from diablo_ds.model.recomputation import Recomputation
from diablo_ds.planning.communication import (
    LIMIT_KEYS,
    Layout,
    LinkBytes,
    gathers_per_micro_step,
    link_bytes,
    step_traffic,
)
from diablo_ds.planning.gathers import Gathers, Limits
from diablo_ds.planning.hardware import GB, Assumptions, ClusterSize, cluster_sizes
from diablo_ds.planning.measure import ModelSizes, measure_model
from diablo_ds.planning.memory import Memory, buckets, host_bytes, rank_memory
from diablo_ds.planning.step_time import StepTime, Work, step_time
from diablo_ds.ranks.nodes import NodeSizes
from diablo_ds.zero.ds_config import complete_ds_config
from diablo_ds.zero.traffic import Collective

_BUCKET_ELEMENTS = 50_000_000
"""Largest bucket for gradients that a plan writes: 200 MB in fp32."""


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

    @property
    def fits(self) -> bool:
        """Whether GPU and node have the memory."""
        return (
            self.memory.total <= self.cluster.usable_bytes
            and self.host_bytes <= self.cluster.node_memory_bytes
        )

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of all ranks together, if every sequence is full."""
        return self.run_config.global_batch * self.run_config.max_length / self.time.total

    @property
    def recomputed(self) -> str:
        """Which decoder layers are recomputed, in words."""
        count = self.recomputation.num_layers
        if not count:
            return "none"
        return "all" if count == self.num_layers else f"{count} of {self.num_layers}"


class Planner:
    """Evaluates layouts of one run.

    Args:
        model_config: the model's Hugging Face config.
        run_config: the run config; its global batch is for the cluster that is planned.
        assumed: the shares of the vendors' figures that a step is assumed to reach.
    """

    def __init__(self, model_config: Any, run_config: RunConfig, assumed: Assumptions) -> None:
        self.model_config, self.run_config, self.assumed = model_config, run_config, assumed
        self._models: dict[tuple[str, int, int], ModelSizes] = {}
        self._gathers: dict[tuple[str, int, int, Limits, bool], Gathers] = {}

    def model(self, run_config: RunConfig) -> ModelSizes:
        """Return the model's sizes for a run config; measured once."""
        key = _key(run_config)
        if key not in self._models:
            self._models[key] = measure_model(self.model_config, run_config)
        return self._models[key]

    def candidates(
        self, cluster: ClusterSize, run_config: RunConfig | None = None
    ) -> Iterator[Candidate]:
        """Yield every layout of a run on a cluster.

        Raises:
            UserError: if the global batch does not divide, or a block count is not legal.
        """
        run_config = run_config or self.run_config
        num_layers = self.model(run_config).num_layers
        for variant in VARIANTS:
            if run_config.precision == "fp16" and variant.stage == 0:  # a run refuses it
                continue
            if variant.hpz and not 1 < cluster.ranks_per_node < cluster.world_size:
                continue
            zero = self.zero_section(variant, cluster, run_config)
            for count in sorted({0, num_layers // 4, num_layers // 2, num_layers}):
                yield self._evaluate(variant, cluster, run_config, zero, Recomputation(count))

    def zero_section(
        self, variant: Variant, cluster: ClusterSize, run_config: RunConfig
    ) -> dict[str, Any]:
        """Return the ZeRO section of a variant's DeepSpeed config, all numbers filled in."""
        model = self.model(run_config)
        policy = read_json(DS_CONFIGS / variant.template)
        zero = policy["zero_optimization"]
        if variant.stage == 3:
            zero |= dict.fromkeys(LIMIT_KEYS, "auto")
            zero["zero_hpz_partition_size"] = cluster.ranks_per_node if variant.hpz else 1
        if variant.stage:
            deltas = [p.num_elements for p in model.parameters if p.group == "deltas"]
            zero["reduce_bucket_size"] = max(*deltas, min(sum(deltas), _BUCKET_ELEMENTS))
        complete = complete_ds_config(
            policy,
            run_config,
            world_size=cluster.world_size,
            base=model.base,
            nodes=NodeSizes(cluster.ranks_per_node, cluster.usable_bytes),
            source=variant.template,
        )
        section: dict[str, Any] = complete["zero_optimization"]
        return section

    def _evaluate(
        self,
        variant: Variant,
        cluster: ClusterSize,
        run_config: RunConfig,
        zero: dict[str, Any],
        recomputation: Recomputation,
    ) -> Candidate:
        model = self.model(run_config)
        layout = Layout.of(
            zero,
            world_size=cluster.world_size,
            ranks_per_node=cluster.ranks_per_node,
            num_micro_steps=run_config.accumulation_steps(cluster.world_size),
        )
        gathers = self._find_gathers(model, layout, run_config)
        traffic = step_traffic(model, layout, gathers)
        num_rows = run_config.micro_batch * run_config.max_length
        work = Work(num_rows, run_config.max_length, recomputation.num_layers)
        return Candidate(
            variant=variant,
            run_config=run_config,
            cluster=cluster,
            recomputation=recomputation,
            num_layers=model.num_layers,
            memory=rank_memory(
                model,
                layout,
                recomputation,
                num_rows,
                gathers=gathers,
                buckets=buckets(zero),
            ),
            host_bytes=host_bytes(model, layout),
            traffic=traffic,
            links=link_bytes(model, layout, traffic, gathers),
            time=step_time(model, layout, work, cluster, self.assumed, traffic, gathers),
        )

    def _find_gathers(
        self, model: ModelSizes, layout: Layout, run_config: RunConfig
    ) -> Gathers | None:
        if not layout.gathers_base:
            return None
        key = (*_key(run_config), layout.limits, layout.num_micro_steps == 1)
        if key not in self._gathers:
            self._gathers[key] = gathers_per_micro_step(model, layout)
        return self._gathers[key]

    # --- choices ---------------------------------------------------------------------------------

    def best(self, cluster: ClusterSize, run_config: RunConfig | None = None) -> Candidate | None:
        """Return the fastest layout that fits a cluster, or None."""
        return fastest([c for c in self.candidates(cluster, run_config) if c.fits])

    def scaling(self, cluster: ClusterSize) -> list[Candidate]:
        """Return each variant's fastest layout that fits, on 1 to 1,024 ranks.

        Micro batch and accumulation of a rank stay, so the global batch grows with the ranks.
        """
        micro_steps = self.run_config.accumulation_steps(cluster.world_size)
        found = []
        for size in cluster_sizes(cluster):
            run_config = grown(self.run_config, size, micro_steps)
            fitting = [c for c in self.candidates(size, run_config) if c.fits]
            for variant in VARIANTS:
                best = fastest([c for c in fitting if c.variant == variant])
                if best is not None:
                    found.append(best)
        return found

    def advice(self, cluster: ClusterSize) -> str:
        """Return what would fit, where nothing does."""
        micro_steps = self.run_config.accumulation_steps(cluster.world_size)
        least = min(self.candidates(cluster), key=lambda c: c.memory.total)
        needed = least.memory.total + cluster.reserved_bytes
        options = [f"GPUs of {needed / GB:,.0f} GB"]
        for size in cluster_sizes(cluster):
            if size.world_size > cluster.world_size:
                run_config = grown(self.run_config, size, micro_steps)
                if self.best(size, run_config) is not None:
                    options.append(f"{size.num_nodes} nodes ({size.world_size} GPUs)")
                    break
        options += self._smaller_micro_batch(cluster)
        rank = least.memory
        parts = {
            "base and gathered weights": rank.base + rank.gathered,
            "activations": rank.activations + rank.transient,
            "deltas and optimizer": rank.deltas + rank.gradients + rank.optimizer + rank.buffers,
        }
        shown = ", ".join(f"{name} {num / GB:,.1f} GB" for name, num in parts.items())
        return (
            f"a layout must fit into {cluster.usable_bytes / GB:,.1f} GB of a GPU; got none, the "
            f"least is {rank.total / GB:,.1f} GB with {least.variant.name} and "
            f"{least.recomputed} layers recomputed ({shown}); what would fit: " + "; ".join(options)
        )

    def _smaller_micro_batch(self, cluster: ClusterSize) -> list[str]:
        run_config = self.run_config
        while run_config.micro_batch > 1:
            run_config = dataclasses.replace(
                run_config, micro_batch=max(1, run_config.micro_batch // 2)
            )
            if run_config.global_batch % (run_config.micro_batch * cluster.world_size):
                continue
            if self.best(cluster, run_config) is not None:
                return [f"micro batch {run_config.micro_batch}"]
        while run_config.max_length > 256:
            run_config = dataclasses.replace(run_config, max_length=run_config.max_length // 2)
            if self.best(cluster, run_config) is not None:
                length = run_config.max_length
                return [f"micro batch {run_config.micro_batch} of at most {length} tokens"]
        return []


def _key(run_config: RunConfig) -> tuple[str, int, int]:
    return run_config.num_blocks, run_config.micro_batch, run_config.max_length


def fastest(candidates: list[Candidate]) -> Candidate | None:
    """Return the fastest candidate, ties broken by memory, or None if there are none."""
    return min(candidates, key=lambda c: (-c.tokens_per_s, c.memory.total), default=None)


def grown(run_config: RunConfig, cluster: ClusterSize, num_micro_steps: int) -> RunConfig:
    """Return a run config for another cluster, with the same number of micro steps per rank."""
    global_batch = run_config.micro_batch * num_micro_steps * cluster.world_size
    return dataclasses.replace(run_config, global_batch=global_batch)
