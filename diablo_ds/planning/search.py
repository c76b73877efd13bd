"""The choice among a run's layouts: micro batch, variant and recomputation; what would fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from diablo_ds.config.run import RunConfig
from diablo_ds.planning.candidate import VARIANTS, Candidate, Variant, fastest
from diablo_ds.planning.hardware import GB, ClusterSize, cluster_sizes
from diablo_ds.planning.plan import Planner


def smaller_micro_batches(run_config: RunConfig, cluster: ClusterSize) -> list[RunConfig]:
    """Return the run config, then with each smaller micro batch that divides the global batch.

    The global batch stays, so a step does the same work with more accumulation.
    """
    sizes = range(run_config.micro_batch, 0, -1)
    return [
        dataclasses.replace(run_config, micro_batch=size)
        for size in sizes
        if run_config.global_batch % (size * cluster.world_size) == 0
    ]


def search(
    planner: Planner, cluster: ClusterSize, run_config: RunConfig, *, must_keep: bool = False
) -> list[Candidate]:
    """Return the layouts of a run at its micro batch and at smaller ones.

    Args:
        planner: of the run's model.
        cluster: what it runs on.
        run_config: the run config, with the largest micro batch.
        must_keep: whether smaller micro batches are tried only until one fits.

    Raises:
        UserError: if the global batch does not divide, or a block count is not legal.
    """
    found: list[Candidate] = []
    for each in smaller_micro_batches(run_config, cluster):
        found += planner.candidates(cluster, each)
        if must_keep and any(c.fits for c in found):
            break
    return found


def best_of(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the fastest layout that fits, or None."""
    return fastest([c for c in candidates if c.fits])


def safer_than(best: Candidate, candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the fastest layout that is not tight, if the best one is, or None."""
    if not best.is_tight:
        return None
    return fastest([c for c in candidates if c.fits and not c.is_tight])


def scaling(planner: Planner, cluster: ClusterSize, run_config: RunConfig) -> list[Candidate]:
    """Return each variant's fastest layout that fits, on 1 to 1,024 ranks.

    Sequences of a rank per step stay, so the global batch grows with the ranks. Where a variant
    does not fit at the micro batch, it is tried at smaller ones.
    """
    micro_steps = run_config.accumulation_steps(cluster.world_size)
    found = []
    for size in cluster_sizes(cluster):
        fitting: dict[Variant, Candidate] = {}
        for each in smaller_micro_batches(grown(run_config, size, micro_steps), size):
            candidates = list(planner.candidates(size, each))
            for variant in {c.variant for c in candidates} - fitting.keys():
                best = best_of([c for c in candidates if c.variant == variant])
                if best is not None:
                    fitting[variant] = best
        found += [fitting[variant] for variant in VARIANTS if variant in fitting]
    return found


def advice(planner: Planner, cluster: ClusterSize, run_config: RunConfig) -> str:
    """Return what would fit, where nothing does at any micro batch up to the run config's."""
    smallest = smaller_micro_batches(run_config, cluster)[-1]
    least = min(planner.candidates(cluster, smallest), key=lambda c: c.memory.total)
    needed = least.memory.total + cluster.reserved_bytes
    options = [f"GPUs of {needed / GB:,.0f} GB"]
    micro_steps = smallest.accumulation_steps(cluster.world_size)
    for size in cluster_sizes(cluster):
        if size.world_size > cluster.world_size:
            larger = grown(smallest, size, micro_steps)
            if any(c.fits for c in planner.candidates(size, larger)):
                options.append(f"{size.num_nodes} nodes ({size.world_size} GPUs)")
                break
    options += _fewer_tokens(planner, cluster, smallest)
    rank = least.memory
    parts = {
        "base and gathered weights": rank.base + rank.gathered,
        "activations": rank.activations + rank.transient,
        "deltas and optimizer": rank.deltas + rank.gradients + rank.optimizer + rank.buffers,
    }
    shown = ", ".join(f"{name} {num / GB:,.1f} GB" for name, num in parts.items())
    return (
        f"a layout must fit into {cluster.usable_bytes / GB:,.1f} GB of a GPU; got none, the "
        f"least is {rank.total / GB:,.1f} GB with {least.variant.name}, micro batch "
        f"{smallest.micro_batch} and {least.recomputed} layers recomputed ({shown}); what would "
        "fit: " + "; ".join(options)
    )


def _fewer_tokens(planner: Planner, cluster: ClusterSize, run_config: RunConfig) -> list[str]:
    while run_config.max_length > 256:
        run_config = dataclasses.replace(run_config, max_length=run_config.max_length // 2)
        if any(c.fits for c in planner.candidates(cluster, run_config)):
            return [f"sequences of at most {run_config.max_length} tokens"]
    return []


def grown(run_config: RunConfig, cluster: ClusterSize, num_micro_steps: int) -> RunConfig:
    """Return a run config for another cluster, with the same number of micro steps per rank."""
    global_batch = run_config.micro_batch * num_micro_steps * cluster.world_size
    return dataclasses.replace(run_config, global_batch=global_batch)
