"""A step in one line: all that is measured where there is room, else the most important of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from diablo_ds.ranks.progress import draw_bar, format_seconds

_MIN_BAR, _MAX_BAR = 6, 40


@dataclass(frozen=True)
class StepState:
    """Where a run stands after a step."""

    step: int
    num_steps: int
    values: Mapping[str, float] = field(default_factory=dict)
    """Of the step, as in the metrics file; empty before the first one."""
    mean_loss: float | None = None
    """Of recent steps."""
    heldout_loss: float | None = None
    """The last one."""
    left_s: float | None = None
    num_gpus: int = 0
    """Of the run; 0 on CPUs."""
    note: str = ""
    """What else there is to say."""


def live_text(state: StepState, columns: int) -> str:
    """Return the line of a terminal.

    All parts are written out where they fit. Otherwise they are short, and the last ones of
    `_short_parts` are left out as far as there is no room for them.

    Args:
        state: where the run stands.
        columns: that the line may take.
    """
    parts = _long_parts(state)
    if len("  ".join(parts)) > columns:
        ranked = _short_parts(state)
        while len(ranked) > 1 and _length(ranked) > columns:
            ranked.pop()
        parts = [text for _, text in sorted(ranked)]
    room = columns - len("  ".join(parts)) - 2
    if room >= _MIN_BAR:
        parts.insert(1, draw_bar(state.step / state.num_steps, min(room, _MAX_BAR)))
    return "  ".join(parts)[:columns]


def plain_text(state: StepState) -> str:
    """Return the line of a log file."""
    return "  ".join(_long_parts(state))


def _length(ranked: list[tuple[int, str]]) -> int:
    return sum(len(text) + 2 for _, text in ranked) - 2


def _long_parts(state: StepState) -> list[str]:
    values = state.values
    parts = [f"step {state.step}/{state.num_steps}"]
    if "loss" in values:
        mean = "" if state.mean_loss is None else f" (mean {state.mean_loss:.4f})"
        parts.append(f"loss {values['loss']:.4f}{mean}")
    if state.heldout_loss is not None:
        parts.append(f"held-out {state.heldout_loss:.4f}")
    if "epoch" in values:
        parts.append(f"epoch {values['epoch']:.2f}")
    if "learning_rate" in values:
        parts.append(f"lr {_rate(values['learning_rate'], 2)}")
    if "grad_norm" in values:
        parts.append(f"grad norm {values['grad_norm']:.3g}")
    if "step_s" in values:
        parts.append(f"{_seconds(values['step_s'])}/step")
    if "tokens_per_s" in values:
        rate = values["tokens_per_s"]
        each = f" ({rate / state.num_gpus:,.0f} per GPU)" if state.num_gpus > 1 else ""
        parts.append(f"{rate:,.0f} tokens/s{each}")
    if "mfu" in values:
        parts.append(f"MFU {values['mfu']:.1%}")
    if "memory_bytes" in values:
        now = values.get("memory_now_bytes", values["memory_bytes"])
        parts.append(f"memory {now / 1e9:.1f} GB, peak {values['memory_bytes'] / 1e9:.1f}")
    if state.left_s is not None:
        parts.append(f"{format_seconds(state.left_s)} left")
    return [*parts, *filter(None, [state.note])]


def _short_parts(state: StepState) -> list[tuple[int, str]]:
    """Return short parts with their place in the line, the most important ones first."""
    values = state.values
    parts = [(0, f"{state.step}/{state.num_steps}")]
    if "loss" in values:
        mean = "" if state.mean_loss is None else f" ({state.mean_loss:.3f})"
        parts.append((1, f"loss {values['loss']:.3f}{mean}"))
    if state.left_s is not None:
        parts.append((9, f"{format_seconds(state.left_s)} left"))
    if state.heldout_loss is not None:
        parts.append((2, f"held {state.heldout_loss:.3f}"))
    if "tokens_per_s" in values:
        parts.append((6, f"{_thousands(values['tokens_per_s'])} tok/s"))
    if "learning_rate" in values:
        parts.append((4, f"lr {_rate(values['learning_rate'], 1)}"))
    if "memory_bytes" in values:
        peak = values["memory_bytes"]
        now = values.get("memory_now_bytes", peak)
        parts.append((8, f"{now / 1e9:.1f}/{peak / 1e9:.1f} GB"))
    if "mfu" in values:
        parts.append((7, f"MFU {values['mfu']:.0%}"))
    if "grad_norm" in values:
        parts.append((5, f"norm {values['grad_norm']:.2g}"))
    if "epoch" in values:
        parts.append((3, f"ep {values['epoch']:.2f}"))
    return parts


def _rate(rate: float, digits: int) -> str:
    """Return a learning rate, e.g. 8.0e-3."""
    mantissa, _, exponent = f"{rate:.{digits}e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _thousands(amount: float) -> str:
    """Return a number in at most four characters, e.g. 16k."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if amount >= size:
            return (
                f"{amount / size:.1f}{unit}" if amount < 10 * size else f"{amount / size:.0f}{unit}"
            )
    return f"{amount:.0f}"
