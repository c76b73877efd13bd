"""The command `diablo-ds plan`: what a run would need on a cluster, before there is one."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from diablo_ds.cli.console import CONTEXT, clean_errors
from diablo_ds.cli.options import GroupedCommand, from_options, options_of, remote_code_option
from diablo_ds.config.batch_sizes import MOST_MICRO_BATCH, choose_batch_sizes
from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.model.shape import Shape
from diablo_ds.planning.hardware import DEVICES, GB, Assumptions, ClusterSize
from diablo_ds.planning.options import DEFAULT_BLOCKS, PlanOptions

_FIGURES = {
    "gpu_memory": "memory_gb",
    "tflops": "tflops",
    "memory_bandwidth": "memory_gbs",
    "inside_bandwidth": "inside_gbs",
    "between_bandwidth": "between_gbs",
}
"""The figures of a GPU model that options may change: option to field of `Device`."""


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@remote_code_option
@options_of(PlanOptions)
@options_of(Shape)
@options_of(Assumptions)
def plan(**values: Any) -> None:
    """Predict memory, traffic and time of a run on a cluster, and choose its layout.

    Nothing is loaded and no GPU is needed: sizes come from the model's config.
    """
    with clean_errors():
        _plan(
            from_options(PlanOptions, values),
            from_options(Shape, values),
            from_options(Assumptions, values),
        )


def _plan(options: PlanOptions, shape: Shape, assumed: Assumptions) -> None:
    from diablo_ds.model.published import find_model_config
    from diablo_ds.planning import output, report, search
    from diablo_ds.planning.plan import Planner
    from diablo_ds.planning.plot import plot_scaling
    from diablo_ds.planning.sentence import count_tokens, hours, sentence

    tokens = (options.tokens, "") if options.tokens else None
    if options.data is not None:
        tokens = count_tokens(options.data.expanduser())
    cluster = _cluster(options)
    run_configs = _run_configs(options, cluster)
    model_config, run_name = find_model_config(options.model, shape, run_configs[0].max_length)
    planner = Planner(model_config, run_configs[0], assumed)
    legal = _legal(planner, run_configs, must_all_be=bool(options.num_blocks))
    models = [(each, planner.model(each)) for each in legal]
    must_keep = options.micro_batch is not None
    by_run = [search.search(planner, cluster, each, must_keep=must_keep) for each in legal]
    best = search.best_of(by_run[0])
    safer = search.safer_than(best, by_run[0]) if best is not None else None
    everything = [c for own in by_run for c in own]
    name = options.model or "model by shape"
    said = sentence(name, cluster, options.gpu, best, safer, by_run[0], tokens)
    parts = [
        said,
        report.model_text(name, models),
        report.cluster_text(cluster, best.run_config if best is not None else legal[0]),
    ]
    short = report.shown_layouts(by_run, best)
    parts.append(report.layouts_text(short, best, len(everything) - len(short)))
    overlap = report.overlap_text(best)
    parts += [overlap] if overlap else []
    whole = [
        *parts[:3],
        report.layouts_text(everything, best),
        *([overlap] if overlap else []),
        report.memory_text(report.of_each_variant(by_run[0])),
    ]
    values = report.plan_dict(name, models, cluster, assumed, everything, best)
    values |= {
        "sentence": said,
        "safer": None if safer is None else report.candidate_dict(safer),
        "tokens": None if tokens is None else tokens[0],
        "hours": None if tokens is None or best is None else hours(best, tokens[0]),
    }
    text = "\n\n".join(whole if options.all else parts)
    click.echo(json.dumps(values, indent=2) if options.json else text)
    if best is None:
        fitting = [
            f"num_blocks {each.num_blocks}"
            for each, own in zip(legal, by_run, strict=True)
            if any(c.fits for c in own)
        ]
        raise UserError("; ".join([search.advice(planner, cluster, legal[0]), *fitting]))
    if options.output is not None:
        scaling = search.scaling(planner, cluster, best.run_config)
        values["scaling"] = [report.candidate_dict(c) for c in scaling]
        table = "\n\n".join(whole)
        written = output.write_output(options.output, planner, best, run_name, table, values)
        plot = options.output / output.PLOT_FILE
        run_config = best.run_config
        title = (
            f"{name}, N={run_config.num_blocks}, {options.gpu}, {cluster.ranks_per_node} per node, "
            f"{run_config.max_length} tokens: planned, times of several GPUs not checked"
        )
        plot_scaling(scaling, plot, title)
        click.echo(written, err=options.json)


def _cluster(options: PlanOptions) -> ClusterSize:
    changes = {
        field: getattr(options, name)
        for name, field in _FIGURES.items()
        if getattr(options, name) is not None
    }
    device = dataclasses.replace(DEVICES[options.gpu], **changes)
    return ClusterSize(
        num_nodes=options.nodes,
        ranks_per_node=options.gpus_per_node,
        memory_bytes=device.memory_gb * GB,
        reserved_bytes=options.reserve * GB,
        node_memory_bytes=options.node_memory * GB,
        flops=device.tflops * 1e12,
        memory_bandwidth=device.memory_gbs * GB,
        inside_bandwidth=device.inside_gbs * GB,
        between_bandwidth=device.between_gbs * GB,
    )


def _run_configs(options: PlanOptions, cluster: ClusterSize) -> list[RunConfig]:
    """Return a run config for each block count.

    Raises:
        UserError: if the global batch does not divide.
    """
    micro_batch, global_batch = options.micro_batch or 0, options.global_batch or 0
    if not global_batch:  # one micro batch per rank
        micro_batch = micro_batch or MOST_MICRO_BATCH
        global_batch = micro_batch * cluster.world_size
    sizes = choose_batch_sizes(micro_batch, global_batch, cluster.world_size)
    precision = options.precision
    if precision == "auto":
        precision = "bf16" if DEVICES[options.gpu].has_bf16 else "fp16"
    return [
        RunConfig(
            num_blocks=num_blocks,
            targets=options.targets,
            micro_batch=sizes.micro_batch,
            global_batch=sizes.global_batch,
            max_length=options.max_length,
            precision=precision,
        )
        for num_blocks in dict.fromkeys(options.num_blocks or DEFAULT_BLOCKS)
    ]


def _legal(planner: Any, run_configs: list[RunConfig], *, must_all_be: bool) -> list[RunConfig]:
    """Return the run configs whose block count divides the widths; the first one must.

    Raises:
        UserError: if the first one's does not or, where all must be legal, another one's.
    """
    legal = []
    for number, run_config in enumerate(run_configs):
        try:
            planner.model(run_config)
            legal.append(run_config)
        except UserError:
            if must_all_be or number == 0:
                raise
    return legal
