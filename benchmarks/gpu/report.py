"""The report of what a GPU was measured to do: tables, goals, plots."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import checks, planned
from benchmarks.gpu.goals import goals_table
from benchmarks.gpu.records import Records
from benchmarks.gpu.stages import STAGES
from benchmarks.plots import plot_bars
from benchmarks.report import RESULTS, table
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import write_text
from diablo_ds.planning.hardware import card_key

_METHODS = {
    "step-frozen": "frozen base",
    "step-zero0": "DiaBlo, ZeRO-0",
    "step-zero2": "DiaBlo, ZeRO-2",
    "step-levers": "DiaBlo, ZeRO-2, one lever",
    "step-zero3": "DiaBlo, ZeRO-3",
    "step-trainer": "Trainer + PEFT LoRA",
    "slice-frozen": "frozen base",
    "slice-zero2": "DiaBlo, ZeRO-2",
    "slice-trainer": "Trainer + PEFT LoRA",
}
_KINDS = {
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "wgmma", "splitk"),
    "attention": ("flash", "fmha", "attention", "cudnn_generated"),
    "copies": ("memcpy", "memset"),
}
_GEMM_NOT = ("flash", "fmha", "attention")


def write_gpu_report(records: Records, folder: Path = RESULTS) -> Path:
    """Write ``<date>-gpu-<card>.md``, ``.jsonl`` and plots of what was measured; return the page.

    Raises:
        UserError: if nothing was measured.
    """
    measured = [r for r in records.all() if r["status"] == "measured"]
    if not measured:
        raise UserError(f"a report needs measured cases; got none in {records.path}")
    last = measured[-1]
    card = str(last["card"])
    date = datetime.date.fromisoformat(last["time"][:10]).isoformat()
    key = card_key(card)
    path = folder / f"{date}-gpu-{key or 'cpu'}"
    versions = ", ".join(f"{name} {number}" for name, number in last["versions"].items())
    parts = [
        f"# One GPU\n\n{date}; {card}; {versions}.\n"
        "Command: `python -m benchmarks.gpu`; figures: the file of the same name in JSON lines.\n"
        f"{_sources(records)}",
        goals_table(records),
        _ceilings(records),
        *(_steps(records, kind, title) for kind, title in _TITLES.items()),
        _kernels(records),
        _packing(records),
        _layers(records),
        _flat("The loss over a long vocabulary", records, "loss"),
        _flat("Checks", records, "checks"),
        planned.plan_table(records, key),
        planned.chosen_table(records),
        _start(records),
        _failures(records),
    ]
    write_text(path.with_suffix(".md"), "\n\n".join(part for part in parts if part) + "\n")
    lines = [json.dumps(r) for r in records.all() if r["status"] != "started"]
    write_text(path.with_suffix(".jsonl"), "\n".join(lines) + "\n")
    _plot(records, path)
    return path.with_suffix(".md")


_TITLES = {
    "step": "The step: shape of Llama-3-8B, sequences of 4,096",
    "slice": "The step: 8 layers of the shape of Llama-3-70B, sequences of 4,096",
}


def _sources(records: Records) -> str:
    """Return which source the figures of each stage were measured with, by its digest."""
    by_source: dict[str, list[str]] = {}
    for record in records.all():
        stages = by_source.setdefault(str(record.get("source", "unknown")), [])
        if record["stage"] not in stages:
            stages.append(record["stage"])
    return "Source digests: " + "; ".join(f"{k}: {', '.join(v)}" for k, v in by_source.items())


def _ceilings(records: Records) -> str:
    found = records.measured("ceilings")
    rows = []
    if "product" in found:
        figures = found["product"]
        rows.append(
            ["bf16 product", f"{figures['width']} cubed", f"{figures['tflops']:.0f} TFLOP/s"]
        )
    if "copy" in found:
        figures = found["copy"]
        size = f"{figures['bytes'] / 1e9:.1f} GB"
        rows.append(["copy, read and written", size, f"{figures['gbs']:.0f} GB/s"])
    return "## Ceilings\n\n" + table(["what", "size", "rate"], rows) if rows else ""


def _steps(records: Records, kind: str, title: str) -> str:
    stages = [stage for stage in _METHODS if stage.startswith(kind)]
    frozen = records.measured(f"{kind}-frozen").get("as it is")
    rows = []
    for stage in stages:
        for name, figures in records.measured(stage).items():
            if "tflops" not in figures:
                continue
            mfu = figures.get("mfu")
            rows.append(
                [
                    _METHODS[stage] + ("" if name == "as it is" else f": {name}"),
                    f"{figures['step_s'] * 1e3:.0f}",
                    f"{figures['tokens_per_s']:,.0f}",
                    "" if mfu is None else f"{mfu:.1%}",
                    f"{figures['memory_bytes'] / 1e9:.1f}",
                    _to_frozen(figures, frozen),
                    f"{figures['trainable']:,}" if "trainable" in figures else "",
                ]
            )
    header = ["method", "step, ms", "tokens/s", "MFU", "peak, GB", "time / frozen", "trainable"]
    return f"## {title}\n\n" + table(header, rows) if rows else ""


def _to_frozen(figures: Mapping[str, Any], frozen: Mapping[str, Any] | None) -> str:
    """Return a step's time divided by the frozen base's, where that has the same batch."""
    if frozen is None:
        return ""
    tokens = [f["tokens_per_s"] * f["step_s"] for f in (frozen, figures)]
    return f"{figures['step_s'] / frozen['step_s']:.3f}" if abs(tokens[0] - tokens[1]) < 1 else ""


def _kernels(records: Records) -> str:
    rows = []
    for stage, method in _METHODS.items():
        for name, figures in records.measured(stage).items():
            if "kernel_ms" not in figures:
                continue
            of_kind = _by_kind(figures["kernel_ms"])
            rows.append(
                [f"{stage}, {method}: {name}", f"{figures['kernels']:,}"]
                + [f"{figures['idle_share']:.1%}"]
                + [f"{of_kind[kind]:.0f}" for kind in (*_KINDS, "other")]
            )
    if not rows:
        return ""
    header = ["step", "kernels", "idle", *(f"{kind}, ms" for kind in (*_KINDS, "other"))]
    return "## One profiled step\n\nOf the 25 kernels that take the most time.\n\n" + table(
        header, rows
    )


def _by_kind(kernels: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return milliseconds by kind of kernel."""
    sums = dict.fromkeys((*_KINDS, "other"), 0.0)
    for name, (_, total_ms) in kernels.items():
        lower = name.lower()
        kinds = [
            kind
            for kind, parts in _KINDS.items()
            if any(part in lower for part in parts)
            and not (kind == "matrix products" and any(part in lower for part in _GEMM_NOT))
        ]
        sums[kinds[0] if kinds else "other"] += total_ms
    return sums


def _packing(records: Records) -> str:
    rows = [
        [
            name,
            f"{f['tokens']:,}",
            f"{f['padding']:.1%}",
            f"{f['step_s'] * 1e3:.0f}",
            f"{f['tokens_per_s']:,.0f}",
            f"{f['memory_bytes'] / 1e9:.1f}",
        ]
        for name, f in records.measured("step-levers").items()
        if "padding" in f
    ]
    header = ["GSM8K's lengths", "tokens", "padding", "step, ms", "tokens/s", "peak, GB"]
    title = "## Packing\n\nTokens of examples, without padding; shape of Llama-3-8B.\n\n"
    return title + table(header, rows) if rows else ""


def _layers(records: Records) -> str:
    found = records.measured("layers")
    shapes = {name: f for name, f in found.items() if "frozen ms" in f}
    parts = []
    if shapes:
        names = [
            key.removesuffix(" ms") for key in next(iter(shapes.values())) if key.endswith(" ms")
        ]
        names = [name for name in names if not name.endswith(" forward") and name != "frozen"]
        rows = [
            [shape, f"{f['frozen ms']:.2f}"]
            + [f"{f[f'{n} ms'] / f['frozen ms']:.3f}" if f"{n} ms" in f else "" for n in names]
            for shape, f in shapes.items()
        ]
        tokens = next(iter(shapes.values()))["tokens"]
        parts.append(
            f"## One layer\n\n{tokens:,} tokens, forward and backward, divided by the frozen "
            "layer's.\n\n" + table(["layer", "frozen, ms", *names], rows)
        )
    others = {name: figures for name, figures in found.items() if name not in shapes}
    parts += [_lines(f"### {name}", figures) for name, figures in others.items()]
    return "\n\n".join(parts)


def _lines(title: str, figures: Mapping[str, Any]) -> str:
    return f"{title}\n\n" + "\n".join(
        f"- {key}: {_number(value)}" for key, value in figures.items()
    )


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _flat(title: str, records: Records, stage: str) -> str:
    rows = [
        [name, ", ".join(f"{key} {_number(value)}" for key, value in figures.items())]
        for name, figures in records.measured(stage).items()
    ]
    return f"## {title}\n\n" + table(["check", "found"], rows) if rows else ""


def _start(records: Records) -> str:
    parts = [_lines(f"### {name}", figures) for name, figures in records.measured("start").items()]
    first = [
        [f"{stage}, {name}", f"{figures['build_s']:.1f}", f"{figures['first_step_s']:.1f}"]
        for stage in _METHODS
        for name, figures in records.measured(stage).items()
        if "build_s" in figures and "first_step_s" in figures
    ]
    if first:
        header = ["step", "model and engine, s", "first step, s"]
        parts.insert(0, table(header, first))
    return "\n\n".join(["## Time to the first step", *parts]) if parts else ""


def _failures(records: Records) -> str:
    stages = sorted({r["stage"] for r in records.all()})
    rows = [[stage, "not run"] for stage in STAGES if stage not in stages]
    if "checks" in stages:
        missing = [c.name for c in checks.cases("full") if c.name not in records.ended("checks")]
        rows += [[f"checks, {name}", "not run"] for name in missing]
    rows += [
        [f"{stage}, {name}", " ".join(r["reason"].split())[:300].replace("|", "/")]
        for stage in stages
        for name, r in records.ended(stage).items()
        if r["status"] == "failed"
    ]
    return "## Not measured\n\n" + table(["case", "reason"], rows) if rows else ""


def _plot(records: Records, path: Path) -> None:
    for kind in _TITLES:
        found = {
            _METHODS[stage] + ("" if name == "as it is" else f": {name}"): figures
            for stage in _METHODS
            if stage.startswith(kind)
            for name, figures in records.measured(stage).items()
            if "tflops" in figures
        }
        if found:
            rates = {"tokens a second": [f["tokens_per_s"] for f in found.values()]}
            target = path.with_name(f"{path.name}-{kind}.png")
            plot_bars(target, list(found), rates, "tokens a second")
