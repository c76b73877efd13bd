"""Every layout of a run on a cluster: what each needs, and how long its step takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from diablo_ds.config.choices import DS_CONFIGS
from diablo_ds.config.run import RunConfig
from diablo_ds.files.atomic import read_json
from diablo_ds.model.recomputation import Recomputation
from diablo_ds.planning.candidate import VARIANTS, Candidate, Variant
from diablo_ds.planning.communication import (
    LIMIT_KEYS,
    Layout,
    gathers_per_micro_step,
    link_bytes,
    step_traffic,
)
from diablo_ds.planning.gathers import Gathers, Limits
from diablo_ds.planning.hardware import Assumptions, ClusterSize
from diablo_ds.planning.measure import ModelSizes, measure_model
from diablo_ds.planning.memory import buckets, host_bytes, rank_memory
from diablo_ds.planning.step_time import Work, flops_per_token, layer_overlap, step_time
from diablo_ds.ranks.nodes import NodeSizes
from diablo_ds.zero.auto_sizes import efficient_bucket
from diablo_ds.zero.ds_config import complete_ds_config

_Key = tuple[str, int, int, str]


class Planner:
    """Evaluates layouts of one run.

    Args:
        model_config: the model's Hugging Face config.
        run_config: the run config; its global batch is for the cluster that is planned.
        assumed: the shares of the vendors' figures that a step is assumed to reach.
        num_blocks: block count of each target layer by full module name; those of the run config by
            default.
    """

    def __init__(
        self,
        model_config: Any,
        run_config: RunConfig,
        assumed: Assumptions,
        num_blocks: dict[str, int] | None = None,
    ) -> None:
        self.model_config, self.run_config, self.assumed = model_config, run_config, assumed
        self._num_blocks = num_blocks
        self._models: dict[_Key, ModelSizes] = {}
        self._gathers: dict[tuple[str, int, int, str, Limits, bool], Gathers] = {}

    def model(self, run_config: RunConfig) -> ModelSizes:
        """Return the model's sizes for a run config; measured once."""
        key = _key(run_config)
        if key not in self._models:
            # On a GPU, auto compiles.
            compiled = run_config.compile != "off"
            self._models[key] = measure_model(
                self.model_config, run_config, self._num_blocks, compiled=compiled
            )
        return self._models[key]

    def candidates(
        self, cluster: ClusterSize, run_config: RunConfig | None = None
    ) -> Iterator[Candidate]:
        """Yield layouts of a run on a cluster, micro batch and global batch as the run config says.

        Of each variant they are none, a quarter, half and all of the decoder layers recomputed, and
        the fewest with which it fits, tightly and not.

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
            found: dict[int, Candidate] = {}

            def evaluate(
                count: int,
                variant: Variant = variant,
                zero: dict[str, Any] = zero,
                found: dict[int, Candidate] = found,
            ) -> Candidate:
                if count not in found:
                    found[count] = self.evaluate(
                        variant, cluster, run_config, zero, Recomputation(count)
                    )
                return found[count]

            for count in (0, num_layers // 4, num_layers // 2, num_layers):
                evaluate(count)
            search_recomputation(evaluate, num_layers, lambda c: c.fits)
            search_recomputation(evaluate, num_layers, lambda c: c.fits and not c.is_tight)
            yield from (found[count] for count in sorted(found))

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
            largest = efficient_bucket(cluster.world_size, cluster.ranks_per_node)
            zero["reduce_bucket_size"] = max(*deltas, min(sum(deltas), largest))
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

    def evaluate(
        self,
        variant: Variant,
        cluster: ClusterSize,
        run_config: RunConfig,
        zero: dict[str, Any],
        recomputation: Recomputation,
    ) -> Candidate:
        """Return what one layout needs.

        Args:
            variant: names the layout, and says whether it offloads.
            cluster: what it runs on.
            run_config: the run config.
            zero: the ZeRO section of the complete DeepSpeed config.
            recomputation: which decoder layers are computed again in the backward.

        Raises:
            UserError: if the global batch does not divide, or a block count is not legal.
        """
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
            overlap=layer_overlap(model, layout, work, cluster, self.assumed),
            flops_per_token=flops_per_token(model, run_config.max_length),
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


def _key(run_config: RunConfig) -> _Key:
    return (
        run_config.num_blocks,
        run_config.micro_batch,
        run_config.max_length,
        run_config.compile,
    )


def search_recomputation(
    evaluate: Callable[[int], Candidate], num_layers: int, suits: Callable[[Candidate], bool]
) -> None:
    """Evaluate the fewest recomputed layers that suit, by bisection: memory falls with them."""
    if suits(evaluate(0)) or not suits(evaluate(num_layers)):
        return
    too_few, enough = 0, num_layers
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if suits(evaluate(middle)):
            enough = middle
        else:
            too_few = middle
