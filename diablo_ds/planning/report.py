"""A plan as tables and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from diablo_ds.config.run import RunConfig
from diablo_ds.files.text_table import text_table
from diablo_ds.planning.candidate import VARIANTS, Candidate, fastest
from diablo_ds.planning.hardware import GB, Assumptions, ClusterSize
from diablo_ds.planning.measure import ModelSizes
from diablo_ds.planning.memory import memory_dict

MOST_ROWS = 8
"""Of the table that a plan prints without ``--all``."""

_KINDS = {
    "base": "base",
    "gathered": "gath.",
    "deltas": "deltas",
    "gradients": "grads",
    "optimizer": "optim.",
    "activations": "activ.",
    "transient": "other",
    "buffers": "buffers",
    "total": "total",
}


def model_text(name: str, models: Sequence[tuple[RunConfig, ModelSizes]]) -> str:
    """Return the model's parameters, and the trainable ones at each block count."""
    sizes = models[0][1]
    lines = [f"{name}: {sizes.num_base:,} parameters, {sizes.num_layers} decoder layers"]
    lines += [
        f"  N={run_config.num_blocks}: {model.num_deltas:,} trainable "
        f"({model.num_deltas / model.num_base:.3%} of the base)"
        for run_config, model in models
    ]
    return "\n".join(lines)


def cluster_text(cluster: ClusterSize, run_config: RunConfig) -> str:
    """Return the cluster and the batch as lines of text."""
    return (
        f"{cluster.num_nodes} x {cluster.ranks_per_node} GPUs of {cluster.memory_bytes / GB:g} GB "
        f"({cluster.reserved_bytes / GB:g} GB of it reserved), {cluster.flops / 1e12:g} TFLOP/s\n"
        f"links: {cluster.inside_bandwidth / GB:g} GB/s a GPU inside a node, "
        f"{cluster.between_bandwidth / GB:g} GB/s a node between nodes\n"
        f"{run_config.batch_equation(cluster.world_size)}; {run_config.max_length} tokens, "
        f"{run_config.precision}"
    )


def shown_layouts(by_run: Sequence[Sequence[Candidate]], best: Candidate | None) -> list[Candidate]:
    """Return the layouts that a short table shows, at most `MOST_ROWS`.

    Args:
        by_run: the layouts of each block count, the planned one first.
        best: the best one of the planned block count.
    """
    own = of_each_variant(by_run[0])
    others = [c for each in by_run[1:] if (c := fastest([c for c in each if c.fits]))]
    shown = own + others[: max(0, MOST_ROWS - len(own))]
    assert best is None or best in shown
    return shown


def layouts_text(
    candidates: Sequence[Candidate], best: Candidate | None, num_left_out: int = 0
) -> str:
    """Return layouts as a table; the best one is marked, and those that fit tightly."""
    header = ("N", "layout", "micro", "recomputed", "GB/rank", "inside", "between", "step s")
    rows: list[tuple[object, ...]] = [(*header, "tokens/s", "")]
    for c in candidates:
        mark = "" if c.fits else "too large"
        if c.host_bytes > c.cluster.node_memory_bytes:
            mark = "host memory"
        marks = ["<- best"] if c is best else []
        marks += ["tight"] if c.is_tight else [mark] if mark else []
        rows.append(
            (
                c.run_config.num_blocks,
                c.variant.name,
                c.run_config.micro_batch,
                c.recomputed,
                f"{c.memory.total / GB:,.1f}",
                f"{c.links.inside / GB:,.2f}",
                f"{c.links.between / GB:,.2f}",
                f"{c.time.total:,.3f}",
                f"{c.tokens_per_s:,.0f}",
                ", ".join(marks),
            )
        )
    note = (
        "Micro: sequences of one forward of a rank. GB of a step, one way: inside, into one GPU "
        "from\nits node; between, into one node. Times are estimates by roofline from the figures "
        "above;\nthose of several GPUs were not checked."
    )
    if num_left_out:
        note += f" {num_left_out:,} more layouts, and memory by kind: --all."
    return text_table(rows, left=(0, 1, 3, 9)) + "\n" + note


def overlap_text(best: Candidate | None) -> str:
    """Return whether the gathers of a layer hide behind its computing; empty without gathers."""
    if best is None or best.overlap is None:
        return ""
    layer = best.overlap
    exposed = best.time.exposed_gathers / best.time.total
    verb = "hides" if layer.is_hidden else "would hide"
    return (
        f"Gathers, planned: {layer.gather * 1e3:,.2f} ms for a layer of "
        f"{layer.gather_bytes / GB:.2f} GB, beside {layer.forward * 1e3:,.2f} ms of forward and "
        f"{layer.backward * 1e3:,.2f} ms\nof backward: "
        f"{'hidden' if layer.is_hidden else 'not hidden'}. A micro batch of "
        f"{layer.tokens_to_hide:,} tokens {verb} both. Waiting for gathers takes\n"
        f"{exposed:.1%} of the step."
    )


def memory_text(candidates: Sequence[Candidate]) -> str:
    """Return the memory per rank by kind, one line per layout, in GB."""
    rows = [("GB per rank", "recomputed", *_KINDS.values())]
    for c in candidates:
        values = memory_dict(c.memory)
        rows.append(
            (c.variant.name, c.recomputed, *(f"{values[kind] / GB:,.2f}" for kind in _KINDS))
        )
    note = (
        "gath.: weights of other ranks that are here for a while; activ.: kept for the backward;\n"
        "other: loss's chunk of logits or one layer's backward; buffers: for reducing gradients."
    )
    return text_table(rows, left=(0, 1)) + "\n" + note


def of_each_variant(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the fastest layout that fits of each variant, or its smallest where none does."""
    chosen = []
    for variant in VARIANTS:
        own = [c for c in candidates if c.variant == variant]
        if own:
            fitting = fastest([c for c in own if c.fits])
            chosen.append(fitting or min(own, key=lambda c: c.memory.total))
    return chosen


def candidate_dict(candidate: Candidate) -> dict[str, Any]:
    """Return a layout as JSON values: bytes, seconds, tokens per second."""
    return {
        "num_blocks": candidate.run_config.num_blocks,
        "layout": candidate.variant.name,
        "micro_batch": candidate.run_config.micro_batch,
        "num_gpus": candidate.cluster.world_size,
        "recomputed_layers": candidate.recomputation.num_layers,
        "fits": candidate.fits,
        "tight": candidate.is_tight,
        "memory_bytes": dict(memory_dict(candidate.memory)),
        "host_bytes_per_node": candidate.host_bytes,
        "traffic_bytes": {
            f"{collective.kind} among {collective.group_size}": num_bytes
            for collective, num_bytes in candidate.traffic.items()
        },
        "link_bytes": asdict(candidate.links),
        "time_s": {**asdict(candidate.time), "total": candidate.time.total},
        "layer_overlap": None if candidate.overlap is None else asdict(candidate.overlap),
        "tokens_per_s": candidate.tokens_per_s,
        "tokens_per_s_per_gpu": candidate.tokens_per_s_per_gpu,
        "mfu": candidate.mfu,
    }


def plan_dict(
    name: str,
    models: Sequence[tuple[RunConfig, ModelSizes]],
    cluster: ClusterSize,
    assumed: Assumptions,
    candidates: Sequence[Candidate],
    best: Candidate | None,
) -> dict[str, Any]:
    """Return a plan as JSON values."""
    return {
        "model": name,
        "base_parameters": models[0][1].num_base,
        "trainable_parameters": {
            run_config.num_blocks: model.num_deltas for run_config, model in models
        },
        "run": asdict(models[0][0]),
        "cluster": asdict(cluster),
        "assumptions": asdict(assumed),
        "layouts": [candidate_dict(candidate) for candidate in candidates],
        "best": None if best is None else candidate_dict(best),
    }
