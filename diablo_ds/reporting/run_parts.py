"""What one run was, in words: model, data, batch, placement, speed, starts."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diablo_ds.config.run import RunConfig
from diablo_ds.config.starts import host_text
from diablo_ds.errors import UserError
from diablo_ds.files.layout import RunFolder
from diablo_ds.ranks.progress import format_seconds
from diablo_ds.reporting.html import code, facts, table, text
from diablo_ds.reporting.record import RunRecord
from diablo_ds.training.run_events import read_events
from diablo_ds.zero.stages import STAGES


def describe_run(run: RunRecord) -> str:
    """Return what ran, as a table."""
    start, config = run.last_start, run.run_config
    versions = _mapping(start.get("library_versions"))
    commit = str(start.get("commit") or "")[:12]
    modified = ", with changes" if start.get("is_modified") else ""
    pairs = [
        ("state", text(run.standing.text())),
        ("folder", code(run.folder)),
        ("problem", text(run.problem)),
        ("model", _model(config, _mapping(start.get("model")))),
        ("data", _data(config, _mapping(start.get("data")))),
        *(_settings(config, start.get("world_size")) if config is not None else ()),
        ("adapter", _adapter(run)),
        ("program", text(f"diablo-ds {start['version']}, commit {commit or 'unknown'}{modified}"))
        if "version" in start
        else ("", ""),
        ("versions", text(", ".join(f"{name} {version}" for name, version in versions.items()))),
        ("command", code(start["command"]) if "command" in start else ""),
    ]
    return facts(pairs)


def describe_placement(run: RunRecord) -> str:
    """Return where the parts of the model were, as a table."""
    start = run.last_start
    zero = _mapping(_mapping(start.get("ds_config")).get("zero_optimization"))
    if not start:
        return ""
    stage = zero.get("stage", 0)
    is_known = isinstance(stage, int) and 0 <= stage < len(STAGES)
    placed = f"{STAGES[stage]}; deltas on every rank" if is_known else "unknown"
    hosts = ", ".join(map(host_text, start.get("hosts", ())))
    offload = [
        f"{what} on {device}"
        for what in ("param", "optimizer")
        if (device := _mapping(zero.get(f"offload_{what}")).get("device")) not in (None, "none")
    ]
    inner = zero.get("zero_hpz_partition_size", 1)
    return facts(
        [
            ("ranks", text(f"{start.get('world_size', '?')}: {hosts}")),
            ("ZeRO", text(f"stage {stage}: {placed}")),
            ("hpZ", text(f"base also sharded among {inner} ranks") if inner != 1 else ""),
            ("offload", text(", ".join(offload))),
        ]
    )


def describe_speed(run: RunRecord) -> str:
    """Return rate, step and memory beside the plan's estimate, and what the time went to."""
    numbers, plan = run.numbers, _mapping(run.last_start.get("plan"))
    rows = []
    for name, title, form, scale in (
        ("tokens_per_s", "tokens/s, all ranks", ",.0f", 1.0),
        ("step_s", "seconds per step", ".3g", 1.0),
        ("mfu", "MFU", ".1%", 1.0),
        ("memory_bytes", "peak memory of a rank (GB)", ".2f", 1e-9),
    ):
        measured = numbers.peak_memory_bytes if name == "memory_bytes" else getattr(numbers, name)
        planned = plan.get(name)
        planned = planned if isinstance(planned, float | int) and 0 < planned < 1e100 else None
        if measured is not None:
            cells = [title, format(measured * scale, form)]
            if planned is not None:
                cells += [format(planned * scale, form), f"{measured / planned:.2f}"]
            rows.append(cells)
    if not rows:
        return ""
    planned_titles = ["planned", "ratio"] if plan else []
    parts = [table(["", "measured", *planned_titles], rows, numbers=(1, 2, 3))]
    note = "Planned for full sequences" if plan else "Not planned, as plans are for GPUs"
    parts.append(f'<p class="note">{note}{_fill(run)}.</p>')
    shares = {"steps": numbers.stepping_s, "evaluation": numbers.evaluation_s}
    shares |= {"tasks": numbers.tasks_s, "saving": numbers.saving_s}
    total = sum(shares.values()) or 1.0
    spent = [f"{name} {format_seconds(s)} ({s / total:.0%})" for name, s in shares.items() if s]
    note = f"Time: {', '.join(spent)}. Rates are medians over the steps."
    parts.append(f'<p class="note">{note}</p>')
    return "\n".join(parts)


def _fill(run: RunRecord) -> str:
    """Return how full sequences are: rates of a plan are for full ones."""
    counts = _mapping(_mapping(run.last_start.get("data")).get("train"))
    tokens, sequences = counts.get("tokens"), counts.get("sequences")
    if run.run_config is None or type(tokens) is not int or type(sequences) is not int:
        return ""
    mean = tokens // max(1, sequences)
    return f"; these have {mean:,} of up to {run.run_config.max_length:,} tokens on average"


def describe_events(run: RunRecord) -> str:
    """Return starts, restarts, ends and faults with their times, as a table."""
    try:
        events = read_events(RunFolder(run.folder))
    except UserError as error:
        return f'<p class="note">{text(error)}</p>'
    rows = [[event.when, text(event.text)] for event in events]
    faults = [number for number, event in enumerate(events) if event.is_fault]
    return table(["time", "event"], rows, faults=faults) if rows else ""


def _model(config: RunConfig | None, start: Mapping[str, Any]) -> str:
    name = start.get("id") or (config.model if config is not None else "")
    revision = f", revision {str(start['revision'])[:12]}" if start.get("revision") else ""
    print_ = f", fingerprint {str(start['fingerprint'])[:12]}" if start.get("fingerprint") else ""
    return text(f"{name}{revision}{print_}")


def _data(config: RunConfig | None, start: Mapping[str, Any]) -> str:
    lines = [text(", ".join(config.data) or config.corpus)] if config is not None else []
    for part, title in (("train", "training"), ("heldout", "held-out")):
        counts = _mapping(start.get(part))
        if counts:
            numbers = [
                f"{counts[name]:,} {name}"
                for name in ("examples", "tokens", "sequences")
                if type(counts.get(name)) is int
            ]
            print_ = counts.get("fingerprint")
            digest = f", fingerprint {print_!s:.12}" if print_ else ""
            lines.append(text(f"{title}: {', '.join(numbers)}{digest}"))
    return "<br>".join(lines)


def _settings(config: RunConfig, world_size: Any) -> list[tuple[str, str]]:
    batch = f"global batch {config.global_batch or 'open'}"
    if type(world_size) is int and world_size > 0 and config.global_batch and config.micro_batch:
        with contextlib.suppress(UserError):
            batch = config.batch_equation(world_size)
    targets = ", ".join(config.targets) or "as the model's family has them"
    schedule = f"{config.learning_rate:g}, {config.schedule}, {config.warmup_steps} warm-up steps"
    length = f"{config.max_length:,} tokens{', packed' if config.packing else ''}"
    return [
        ("batch", text(batch)),
        ("length", text(length)),
        ("blocks", text(f"N={config.num_blocks}; targets {targets}")),
        ("learning rate", text(schedule)),
        ("precision", text(f"{config.precision}, attention {config.attention}")),
        ("seed", text(config.seed)),
    ]


def _adapter(run: RunRecord) -> str:
    from diablo_ds.adapter.storage import load_adapter_header  # it needs torch

    folder: Path = RunFolder(run.folder).adapter
    if not folder.is_dir():
        return ""
    try:
        shapes = load_adapter_header(folder).shapes
    except (UserError, OSError):
        return text("damaged, or not complete")
    count = sum(n * rows * columns for (n, rows, columns), _ in shapes.values())
    return text(f"{len(shapes):,} deltas, {count:,} trained parameters")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
