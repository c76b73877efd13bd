"""The command `diablo-ds plan`: what a run would need on a cluster, before there is one."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import click

from diablo_ds.cli.console import CONTEXT, clean_errors
from diablo_ds.config.batch_sizes import MOST_MICRO_BATCH, choose_batch_sizes
from diablo_ds.config.choices import PRECISIONS
from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.planning.hardware import DEVICES, GB, Assumptions, ClusterSize

_SHAPE = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "vocab_size"),
)
_GPU_HELP = f"GPU model, for figures that are not given: {', '.join(DEVICES)}."


def _shape_options(command: Any) -> Any:
    command = click.option(
        "--tie-word-embeddings/--no-tie-word-embeddings", default=None, help="Head shares weights."
    )(command)
    for name in reversed(_SHAPE):
        option = f"--{name.replace('_', '-')}"
        command = click.option(
            option, type=click.IntRange(min=1), help="Model without --model, or changed."
        )(command)
    return command


def _assumption_options(command: Any) -> Any:
    helps = {
        "compute_share": "Share of the peak that products reach.",
        "memory_share": "Share of the memory's bandwidth that is reached.",
        "link_share": "Share of a link's bandwidth that is reached.",
    }
    for name, text in reversed(helps.items()):
        default = getattr(Assumptions, name)
        command = click.option(
            f"--{name.replace('_', '-')}", default=default, show_default=True, help=text
        )(command)
    return command


@click.command(context_settings=CONTEXT)
@click.option("--model", default="", help="Built-in shape, folder with config.json, or hub name.")
@_shape_options
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="Nodes.")
@click.option("--gpus-per-node", type=click.IntRange(1), default=8, show_default=True, help="GPUs.")
@click.option(
    "--gpu", type=click.Choice(list(DEVICES)), default="h100", show_default=True, help=_GPU_HELP
)
@click.option("--gpu-memory", type=float, help="Memory of a GPU, in GB.")
@click.option("--tflops", type=float, help="Peak of dense 16-bit products, in TFLOP/s.")
@click.option("--memory-bandwidth", type=float, help="Of a GPU's memory, in GB/s.")
@click.option("--inside-bandwidth", type=float, help="One GPU to its node, one way, in GB/s.")
@click.option("--between-bandwidth", type=float, help="One node's network, one way, in GB/s.")
@click.option("--node-memory", default=1000.0, show_default=True, help="Of a node, in GB.")
@click.option(
    "--reserve",
    default=2.0,
    show_default=True,
    help="Of a GPU, for CUDA, NCCL and the allocator's gaps, in GB.",
)
@click.option(
    "--num-blocks",
    multiple=True,
    default=("64", "32", "128"),
    show_default=True,
    help="Diagonal blocks; repeatable: the first is planned, the others compared.",
)
@click.option("--targets", multiple=True, help="Target layers, as in training; repeatable.")
@click.option(
    "--micro-batch",
    type=click.IntRange(1),
    help=f"Sequences of one forward.  [default: the most up to {MOST_MICRO_BATCH} that divide]",
)
@click.option(
    "--global-batch",
    type=click.IntRange(1),
    help="Sequences of a step.  [default: one micro batch a rank]",
)
@click.option(
    "--max-length",
    type=click.IntRange(2),
    default=2048,
    show_default=True,
    help="Tokens of a sequence.",
)
@click.option(
    "--precision",
    type=click.Choice(("auto", *PRECISIONS)),
    default="auto",
    show_default=True,
    help="Auto is bf16, or fp16 on a GPU without it.",
)
@_assumption_options
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for a DeepSpeed config, commands, tables and a scaling plot.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--all", "show_all", is_flag=True, help="Show every layout of every block count.")
def plan(**options: Any) -> None:
    """Predict memory, traffic and time of a run on a cluster, and choose its layout.

    Nothing is loaded and no GPU is needed: sizes come from the model's config.
    """
    with clean_errors():
        _plan(options)


def _plan(options: dict[str, Any]) -> None:
    from diablo_ds.model.published import Shape, find_model_config
    from diablo_ds.planning import output, report
    from diablo_ds.planning.plan import Planner, fastest

    shape = Shape(
        **{name: options[name] or 0 for name in _SHAPE},
        tie_word_embeddings=options["tie_word_embeddings"],
    )
    cluster = _cluster(options)
    runs = _runs(options, cluster)
    config, run_name = find_model_config(options["model"], shape, runs[0].max_length)
    assumed = Assumptions(
        **{name: options[name] for name in ("compute_share", "memory_share", "link_share")}
    )
    planner = Planner(config, runs[0], assumed)
    models = [(run, planner.model(run)) for run in _legal(planner, runs, options)]
    by_run = [list(planner.candidates(cluster, run)) for run, _ in models]
    best = fastest([c for c in by_run[0] if c.fits])
    shown = by_run[0] if not options["show_all"] else [c for own in by_run for c in own]
    if not options["show_all"]:
        shown = shown + [c for own in by_run[1:] if (c := fastest([c for c in own if c.fits]))]
    everything = [c for own in by_run for c in own]
    name = options["model"] or "model by shape"
    text = "\n\n".join(
        [
            report.model_text(name, models),
            report.cluster_text(cluster, runs[0]),
            report.layouts_text(shown, best),
            report.memory_text(report.of_each_variant(by_run[0])),
        ]
    )
    values = report.plan_dict(name, models, cluster, assumed, everything, best)
    click.echo(json.dumps(values, indent=2) if options["as_json"] else text)
    if best is None:
        fitting = [
            f"num_blocks {run.num_blocks}"
            for (run, _), own in zip(models, by_run, strict=True)
            if any(c.fits for c in own)
        ]
        raise UserError("; ".join([planner.advice(cluster), *fitting]))
    if options["output"] is not None:
        scaling = planner.scaling(cluster)
        values["scaling"] = [report.candidate_dict(c) for c in scaling]
        written = output.write_output(options["output"], planner, best, run_name, text, values)
        plot = options["output"] / output.PLOT_FILE
        report.plot_scaling(scaling, plot, f"{name}, N={runs[0].num_blocks}, {options['gpu']}")
        click.echo(written, err=options["as_json"])


def _cluster(options: dict[str, Any]) -> ClusterSize:
    device = DEVICES[options["gpu"]]
    fields = {
        "gpu_memory": "memory_gb",
        "tflops": "tflops",
        "memory_bandwidth": "memory_gbs",
        "inside_bandwidth": "inside_gbs",
        "between_bandwidth": "between_gbs",
    }
    given = {name: options[name] for name in fields if options[name] is not None}
    for name, value in given.items():
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{name} must be positive; got {name}={value}")
    for name in ("reserve", "node_memory"):
        if not (math.isfinite(options[name]) and options[name] >= 0):
            raise UserError(f"{name} must be from 0 on; got {name}={options[name]}")
    changes = {fields[name]: value for name, value in given.items()}
    device = dataclasses.replace(device, **changes)
    return ClusterSize(
        num_nodes=options["nodes"],
        ranks_per_node=options["gpus_per_node"],
        memory_bytes=device.memory_gb * GB,
        reserved_bytes=options["reserve"] * GB,
        node_memory_bytes=options["node_memory"] * GB,
        flops=device.tflops * 1e12,
        memory_bandwidth=device.memory_gbs * GB,
        inside_bandwidth=device.inside_gbs * GB,
        between_bandwidth=device.between_gbs * GB,
    )


def _runs(options: dict[str, Any], cluster: ClusterSize) -> list[RunConfig]:
    """Return a run config for each block count.

    Raises:
        UserError: if the global batch does not divide.
    """
    micro_batch, global_batch = options["micro_batch"] or 0, options["global_batch"] or 0
    if not global_batch:  # one micro batch a rank
        micro_batch = micro_batch or MOST_MICRO_BATCH
        global_batch = micro_batch * cluster.world_size
    sizes = choose_batch_sizes(micro_batch, global_batch, cluster.world_size)
    precision = options["precision"]
    if precision == "auto":
        precision = "bf16" if DEVICES[options["gpu"]].has_bf16 else "fp16"
    return [
        RunConfig(
            num_blocks=num_blocks,
            targets=tuple(options["targets"]),
            micro_batch=sizes.micro_batch,
            global_batch=sizes.global_batch,
            max_length=options["max_length"],
            precision=precision,
        )
        for num_blocks in dict.fromkeys(options["num_blocks"])
    ]


def _legal(planner: Any, runs: list[RunConfig], options: dict[str, Any]) -> list[RunConfig]:
    """Return the run configs whose block count divides; all must where the user gave them."""
    source = click.get_current_context().get_parameter_source("num_blocks")
    given = source is not click.core.ParameterSource.DEFAULT
    legal = []
    for number, run in enumerate(runs):
        try:
            planner.model(run)
            legal.append(run)
        except ValueError:
            if given or number == 0:
                raise
    return legal
