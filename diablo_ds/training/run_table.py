"""What a run is made with and what it came to, as a Markdown table for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diablo_ds.config.run import RunConfig
from diablo_ds.config.starts import host_text
from diablo_ds.files.markdown_text import cell
from diablo_ds.training.run_numbers import RunNumbers


def run_table(
    run_config: RunConfig,
    start: Mapping[str, Any],
    numbers: RunNumbers,
    *,
    num_steps: int,
    num_trainable: int,
    placement: str,
) -> str:
    """Return the table.

    Args:
        run_config: of the run, without open values.
        start: an entry of `run.json`'s starts.
        numbers: what the run came to so far.
        num_steps: of the run.
        num_trainable: trained parameters.
        placement: where tensors are, as lines of text.
    """
    model, data = start["model"], start["data"]
    modified = "with changes" if start["is_modified"] else ""
    rows = [
        ("model", _joined(model["id"], model["revision"], model["path"])),
        ("checksum of the model", model["fingerprint"]),
        ("training data", _data(data["train"], run_config.data)),
        ("held-out data", _data(data["heldout"], run_config.heldout_data)),
        ("batch", run_config.batch_equation(start["world_size"])),
        ("steps", f"{num_steps:,}, from step {start['start_step']:,}"),
        ("trained", f"{num_trainable:,} parameters, num_blocks {run_config.num_blocks}"),
        ("learning rate", f"{run_config.learning_rate:g}, {run_config.schedule}"),
        (
            "numbers",
            f"{run_config.precision}, attention {run_config.attention}, compile "
            f"{run_config.compile}, delta path {run_config.delta_path}",
        ),
        *_plan_rows(start.get("plan"), numbers),
        ("held-out loss", _losses(numbers)),
        ("hosts", ", ".join(map(host_text, start["hosts"]))),
        ("versions", ", ".join(f"{k} {v}" for k, v in start["library_versions"].items())),
        ("code", _joined(start["version"], start["commit"], modified)),
        ("started", start["date"]),
        ("in", start["working_folder"]),
        ("command", start["command"]),
    ]
    lines = ["| what | value |", "|---|---|"]
    lines += [f"| {name} | {cell(str(value))} |" for name, value in rows if value]
    return "\n".join([*lines, "", "```", placement, "```"])


def _plan_rows(plan: Mapping[str, Any] | None, numbers: RunNumbers) -> list[tuple[str, str]]:
    """Return what was measured, with what the plan said before where it said something."""
    peak = numbers.peak_memory_bytes
    pairs = (
        ("tokens/s", "tokens_per_s", numbers.tokens_per_s, 1.0, ",.0f"),
        ("seconds per step", "step_s", numbers.step_s, 1.0, ".3g"),
        ("peak memory of rank 0, GB", "memory_bytes", peak, 1e-9, ".2f"),
    )
    rows = []
    for name, key, measured, unit, form in pairs:
        planned = (plan or {}).get(key)
        known = [] if measured is None else [format(measured * unit, form)]
        if isinstance(planned, int | float):
            known.append(f"planned {format(planned * unit, form)}")
        rows.append((name, ", ".join(known)))
    return rows


def _losses(numbers: RunNumbers) -> str:
    if numbers.first_heldout is None or numbers.best_heldout is None:
        return ""
    best = f"best {numbers.best_heldout:.4f} at step {numbers.best_step}"
    return f"{numbers.first_heldout:.4f} at first, {best}"


def _data(part: Mapping[str, Any] | None, paths: tuple[str, ...]) -> str:
    if part is None:
        return "none"
    counts = [f"{part[key]:,} {key}" for key in ("examples", "tokens", "sequences") if key in part]
    return _joined(", ".join(paths), *counts, f"checksum {part.get('fingerprint', 'not known')}")


def _joined(*parts: Any) -> str:
    return ", ".join(str(part) for part in parts if part)
