"""Charts of an evaluation: scores as bars with intervals, and the trade-off of refusals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diablo_ds.evaluation.results import Results, Score
from diablo_ds.evaluation.tables import NATURAL, refusal_scores, shortened
from diablo_ds.files.atomic import new_file
from diablo_ds.files.figures import figure_class

SCORES_PLOT, TRADE_OFF_PLOT = "scores.png", "tradeoff.png"
_BAR_WIDTH = 40


def draw_charts(results: Results, models: Sequence[str], folder: Path) -> list[str]:
    """Draw the charts of an evaluation as PNG files, where matplotlib is installed.

    Args:
        results: the scores.
        models: names of the models.
        folder: for the files.

    Returns:
        Names of the files, none without matplotlib.
    """
    try:
        figure_of = figure_class()
    except ImportError:
        return []
    names = []
    known = [score for score in results.scores if math.isfinite(score.estimate.score)]
    shares = [score for score in known if score.metric not in NATURAL]
    others = [score for score in known if score.metric in NATURAL]
    panels = [(p, unit) for p, unit in ((shares, "%"), (others, "")) if p]
    if panels:
        most = max(len(_groups(part)) for part, _ in panels)
        size = max(9.0, most * (0.3 + 0.12 * len(models))), 4.2 * len(panels)
        figure = figure_of(figsize=size, layout="constrained")
        for axes, (scores, unit) in zip(
            figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True
        ):
            _draw_bars(axes, scores, models, unit)
        _save(figure, folder / SCORES_PLOT)
        names.append(SCORES_PLOT)
    refusals = refusal_scores(results)
    if refusals:
        figure = figure_of(figsize=(6, 5), layout="constrained")
        axes = figure.subplots()
        for harmful, harmless, model, first, second in refusals:
            x, y = 100 * second.estimate.score, 100 * first.estimate.score
            axes.errorbar(
                x, y, xerr=_errors(second, 100), yerr=_errors(first, 100), fmt="o", capsize=3
            )
            axes.annotate(shortened(model), (x, y), xytext=(6, 6), textcoords="offset points")
            axes.set_xlabel(f"{harmless}: harmless prompts refused (%)")
            axes.set_ylabel(f"{harmful}: harmful prompts refused (%)")
        axes.set_xlim(-2, 102)
        axes.set_ylim(-2, 102)
        axes.grid(alpha=0.3)
        _save(figure, folder / TRADE_OFF_PLOT)
        names.append(TRADE_OFF_PLOT)
    return names


def text_chart(results: Results) -> str:
    """Return the shares as bars of characters, for a reader without images."""
    lines = []
    for score in results.scores:
        if score.metric not in NATURAL and math.isfinite(score.estimate.score):
            share = score.estimate.score
            bar = "#" * round(share * _BAR_WIDTH)
            name = f"{score.task} {score.metric} {shortened(score.model)}"
            lines.append(f"{name:<48} {100 * share:5.1f} {bar}".rstrip())
    return "\n".join(lines)


def _groups(scores: Sequence[Score]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((score.task, score.metric) for score in scores))


def _draw_bars(axes: Any, scores: Sequence[Score], models: Sequence[str], unit: str) -> None:
    groups = _groups(scores)
    width, factor = 0.8 / len(models), 100 if unit else 1
    for number, model in enumerate(models):
        mine = [s for s in scores if s.model == model]
        if mine:
            axes.bar(
                [groups.index((s.task, s.metric)) + (number + 0.5) * width - 0.4 for s in mine],
                [factor * s.estimate.score for s in mine],
                width,
                yerr=list(zip(*(_error(s, factor) for s in mine), strict=True)),
                capsize=2,
                label=shortened(model),
            )
    if len(groups) < 6:
        axes.set_xticks(range(len(groups)), ["\n".join(group) for group in groups])
    else:
        labels = [", ".join(group) for group in groups]
        axes.set_xticks(range(len(groups)), labels, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_xlim(-1, len(groups))
    axes.set_ylabel("score (%)" if unit else "score")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend()


def _error(score: Score, factor: float) -> tuple[float, float]:
    """Return how far the interval reaches below and above a score."""
    value, (low, high) = score.estimate.score, score.estimate.interval
    ends = (value - low, high - value)
    below, above = (factor * max(0.0, e) if math.isfinite(e) else 0.0 for e in ends)
    return below, above


def _errors(score: Score, factor: float) -> list[list[float]]:
    below, above = _error(score, factor)
    return [[below], [above]]


def _save(figure: Any, path: Path) -> None:
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
