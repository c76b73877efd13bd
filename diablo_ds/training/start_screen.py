"""What a run is about to do, on one screen, before the model is loaded."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diablo_ds.config.batch_resolution import AS_RECORDED
from diablo_ds.config.schedule import describe_warmup
from diablo_ds.data.batch_source import BatchSource
from diablo_ds.data.training_batches import TrainingBatches
from diablo_ds.files.layout import RunFolder
from diablo_ds.model.architecture import decoder_layers
from diablo_ds.ranks import distributed
from diablo_ds.ranks.progress import format_seconds
from diablo_ds.training.evaluations import interval
from diablo_ds.training.metrics_file import RecentPoints
from diablo_ds.training.preparing import Prepared
from diablo_ds.training.resuming import Position
from diablo_ds.training.time_left import ESTIMATE_STEPS, Schedule, time_left_s
from diablo_ds.zero.stages import STAGES

_LABEL = 11
_EXAMPLE_CHARACTERS = 300
"""Of a prompt, and of what follows it."""
_LOSS_MARK = "[["


def start_screen(
    prepared: Prepared,
    position: Position,
    folder: Path,
    plan: Mapping[str, float] | None,
    columns: int,
) -> str:
    """Return model, data, batch, placement, numbers and time of a run as a table.

    Args:
        prepared: the run.
        position: where it begins or continues.
        folder: the run folder.
        plan: what `estimate_plan` expects of it.
        columns: of the terminal; 0 for lines of any length, as a log file has them.
    """
    run_config, inputs = prepared.run_config, prepared.inputs
    world_size, num_steps = distributed.world_size(), position.num_steps
    is_short = columns > 0
    train = _data_lines(inputs.train, is_short=is_short)
    heldout = [] if inputs.heldout is None else _data_lines(inputs.heldout, is_short=is_short)
    rows = [
        ("run", _run_text(position, folder)),
        ("model", _model_text(prepared)),
        ("trained", _trained_text(prepared)),
        ("data", "; ".join(train)),
        ("held-out", "; ".join(line for line in heldout if line not in train)),
        ("", inputs.ends.describe()),
        ("batch", run_config.batch_equation(world_size)),
        ("steps", _steps_text(prepared, position)),
        ("", describe_warmup(num_steps, run_config.warmup_steps)),
        *_task_rows(prepared),
        ("time", _time_text(prepared, position, folder, plan)),
        ("numbers", _numbers_text(prepared)),
        ("placement", _placement_text(prepared)),
        *_chosen_rows(prepared, is_short=is_short),
    ]
    width = max(40, columns - _LABEL - 1) if columns else 0
    return "\n".join(line for label, text in rows if text for line in _row(label, text, width))


def shown_example(text: str) -> str:
    """Return the first example for the start of a run; of a long one, where its loss begins."""
    prompt, mark, rest = text.partition(_LOSS_MARK)
    shown = f"{_shortened(prompt)}{mark}{_shortened(rest)}"
    how = " (--preview 1 shows all of it)" if shown != text else ""
    return f"The first example, with loss in [[...]]{how}:\n{shown}"


def _shortened(text: str) -> str:
    """Return a text without the middle of it where it is long."""
    if len(text) <= _EXAMPLE_CHARACTERS:
        return text
    half = _EXAMPLE_CHARACTERS // 2
    begin, end = text[:half], text[-half:]
    return f"{begin.rpartition(' ')[0] or begin} ... {end.partition(' ')[2] or end}"


def _row(label: str, text: str, width: int) -> list[str]:
    lines = (
        textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
        if width
        else [text]
    )
    return [f"{'' if i else label:<{_LABEL}}{line}" for i, line in enumerate(lines)]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _data_lines(source: TrainingBatches | BatchSource, *, is_short: bool) -> list[str]:
    """Return what is known of data; on a terminal without what goes without saying.

    That is where the working folder is, and that all rows became examples.
    """
    lines = _lines(source.describe())
    if is_short:
        number = lines[0].partition(" ")[0]
        lines = [line for line in lines if not line.startswith(f"{number} rows read: {number} ")]
        lines[0] = lines[0].replace(f"; from {Path.cwd()}/", "; from ")
    return lines


def _task_rows(prepared: Prepared) -> list[tuple[str, str]]:
    lines = _lines(prepared.tasks.describe() if prepared.tasks else "")
    return [("" if i else "tasks", line) for i, line in enumerate(lines)]


def _chosen_rows(prepared: Prepared, *, is_short: bool) -> list[tuple[str, str]]:
    """Return what was chosen and why; on a terminal in one paragraph, of this start alone."""
    lines = prepared.resolution.lines
    if not is_short:
        return [("chosen", line) for line in lines]
    lines = tuple(line for line in lines if not line.endswith(AS_RECORDED))
    equation = prepared.run_config.batch_equation(distributed.world_size())
    return [("chosen", "; ".join(line.replace(f"{equation}: ", "batch: ") for line in lines))]


def _run_text(position: Position, folder: Path) -> str:
    if not position.start_step:
        return str(folder)
    return f"{folder}, continues after step {position.start_step} of {position.num_steps}"


def _model_text(prepared: Prepared) -> str:
    shapes = prepared.design.shapes
    count = sum(parameter.numel() for parameter in shapes.parameters())
    num_layers = len(decoder_layers(shapes))
    name = prepared.adapter.base_model
    name = prepared.base.folder.name if name == "default" else name
    return f"{name}: {_count(count)} parameters, {num_layers} decoder layers"


def _trained_text(prepared: Prepared) -> str:
    shapes: Any = prepared.design.shapes
    num_blocks = prepared.design.num_blocks
    total = sum(parameter.numel() for parameter in shapes.parameters())
    count = sum(shapes.get_submodule(name).weight.numel() // n for name, n in num_blocks.items())
    kinds = Counter(name.rpartition(".")[2] for name in num_blocks)
    blocks = ", ".join(f"N={n}" for n in sorted(set(num_blocks.values())))
    return (
        f"{_count(count)} parameters, {count / total:.2%} of the base, {blocks}, in "
        f"{len(num_blocks)} layers: {', '.join(kinds)}"
    )


def _numbers_text(prepared: Prepared) -> str:
    run_config, design = prepared.run_config, prepared.design
    parts = [
        f"{run_config.precision}, deltas and optimizer in fp32",
        f"attention {run_config.attention}",
        f"delta path {run_config.delta_path}",
    ]
    if run_config.compile == "on":
        parts.append("layers compiled")
    if design.fit is not None:
        parts.append("recomputed layers by the memory budget")
    elif design.recomputation.num_layers:
        parts.append(design.recomputation.text(len(decoder_layers(design.shapes))))
    return "; ".join(parts)


def _placement_text(prepared: Prepared) -> str:
    design, world_size = prepared.design, distributed.world_size()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    count = torch.get_num_threads()
    plural = "s" if count > 1 else ""
    threads = "" if torch.cuda.is_available() else f" with {count} thread{plural}"
    text = f"ZeRO-{design.stage} on {world_size} x {device}{threads}: {STAGES[design.stage]}"
    for name, what in (("offload_param", "base"), ("offload_optimizer", "optimizer state")):
        offload = design.ds_config.get("zero_optimization", {}).get(name) or {}
        if offload.get("device", "none") != "none":
            text += f"; {what} offloaded to {offload['device']}"
    return text


def _steps_text(prepared: Prepared, position: Position) -> str:
    run_config, num_steps = prepared.run_config, position.num_steps
    rate = f"learning rate {run_config.learning_rate:g}, {run_config.schedule}"
    saving = f"checkpoint every {interval(run_config.save_every, num_steps)}"
    if prepared.inputs.heldout is None:
        return f"{num_steps:,}; {saving}; {rate}"
    evaluation = f"evaluation every {interval(run_config.eval_every, num_steps)}"
    if evaluation.rpartition(" ")[2] == saving.rpartition(" ")[2]:
        return f"{num_steps:,}; evaluation and {saving}; {rate}"
    return f"{num_steps:,}; {evaluation}; {saving}; {rate}"


def _time_text(
    prepared: Prepared, position: Position, folder: Path, plan: Mapping[str, float] | None
) -> str:
    """Return how long it will take, by what is known before the first step."""
    if position.start_step:
        before = RecentPoints(RunFolder(folder).metrics, position.start_step).read()
        seconds = time_left_s(before, Schedule.of(prepared.run_config, position.num_steps))
        if seconds is not None:
            return f"about {format_seconds(seconds)} more, as its steps took before"
    if plan is not None:
        seconds = (position.num_steps - position.start_step) * plan["step_s"]
        return f"{format_seconds(seconds)} of steps by the plan, if every sequence is full"
    return f"estimated after {ESTIMATE_STEPS} steps"


def _count(count: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return str(count)
