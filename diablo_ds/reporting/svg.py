"""Line charts as SVG text, for a page that needs neither scripts nor other files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diablo_ds.reporting.html import text

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666", "#000000")
"""Told apart by colour-blind readers too (Okabe and Ito, 2008)."""
DASHES = ("", "6 3", "2 2", "8 3 2 3")
"""Of lines beyond the colours."""
_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 26, 40
_MOST_TICKS = 6


@dataclass(frozen=True)
class Line:
    """A line of a chart."""

    points: Sequence[tuple[float, float]]
    """Finite; for a logarithmic axis with a positive x."""
    style: int = 0
    """Number of its colour and dashes."""
    has_markers: bool = False


def color_of(style: int) -> str:
    """Return the colour of a line."""
    return COLORS[style % len(COLORS)]


def dashes_of(style: int) -> str:
    """Return the dashes of a line; empty for none."""
    return DASHES[style // len(COLORS) % len(DASHES)]


def line_chart(title: str, x: str, lines: Sequence[Line], *, is_log: bool = False) -> str:
    """Return a chart as an SVG element.

    Args:
        title: what is drawn, with its unit.
        x: name of the x axis.
        lines: at least one point in all.
        is_log: whether the x axis is logarithmic.
    """
    points = [point for line in lines for point in line.points]
    horizontal = _Axis.of([px for px, _ in points], _LEFT, _WIDTH - _RIGHT, is_log=is_log)
    vertical = _Axis.of([py for _, py in points], _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(title)}">',
        f'<text x="{_LEFT}" y="16" class="title">{text(title)}</text>',
    ]
    for value, label in vertical.ticks():
        y = vertical.place(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" class="end">{label}</text>')
    for value, label in horizontal.ticks():
        at = horizontal.place(value)
        parts.append(f'<path class="grid" d="M{at:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 16}" class="mid">{label}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{_HEIGHT - 6}" class="mid">{text(x)}</text>')
    for line in lines:
        placed = [(horizontal.place(px), vertical.place(py)) for px, py in line.points]
        parts.append(_drawn(line, placed))
    return "\n".join([*parts, "</svg>"])


def _drawn(line: Line, placed: Sequence[tuple[float, float]]) -> str:
    color, dashes = color_of(line.style), dashes_of(line.style)
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in placed)
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    parts = [f'<polyline points="{path}" fill="none" stroke="{color}"{dashed}/>']
    if line.has_markers or len(placed) == 1:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>' for x, y in placed]
    return "".join(parts)


@dataclass(frozen=True)
class _Axis:
    """From values to places, in the units of the picture."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    @classmethod
    def of(
        cls, values: Sequence[float], start: float, end: float, *, is_log: bool = False
    ) -> _Axis:
        low, high = min(values), max(values)
        if is_log:
            return cls(math.log10(low), math.log10(high), start, end, is_log)
        margin = (high - low) * 0.04 or abs(high) * 0.05 or 1.0
        low = 0.0 if 0 <= low <= 0.3 * high else low - margin * (end < start)
        return cls(low, high + margin * (end < start or high == low), start, end)

    def place(self, value: float) -> float:
        value = math.log10(value) if self.is_log else value
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        if self.is_log:
            return self._log_ticks()
        step = _round_up((self.high - self.low) / _MOST_TICKS)
        first = math.ceil(self.low / step)
        last = math.floor(self.high / step + 1e-9)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        if digits > 5 or step >= 1e6:
            return [(n * step, f"{n * step:.3g}") for n in range(first, last + 1)]
        return [(n * step, f"{n * step:,.{digits}f}") for n in range(first, last + 1)]

    def _log_ticks(self) -> list[tuple[float, str]]:
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        within = 1e-9 + self.high - self.low
        factors = (1, 2, 5) if within < 3 else (1,)
        values = [factor * 10.0**decade for decade in decades for factor in factors]
        inside = [v for v in values if self.low - 1e-9 <= math.log10(v) <= self.high + 1e-9]
        return [(value, f"{value:g}") for value in inside[:: 1 + len(inside) // 8]]


def _round_up(step: float) -> float:
    """Return the next larger of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(f * power for f in (1, 2, 5, 10) if f * power >= step * (1 - 1e-9))
