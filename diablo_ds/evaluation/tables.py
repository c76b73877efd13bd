"""Scores and differences as text for a terminal of 80 columns, and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diablo_ds.evaluation.inputs import base_name
from diablo_ds.evaluation.model_names import BASE
from diablo_ds.evaluation.results import Comparison, Results, Score
from diablo_ds.evaluation.statistics import Interval

NATURAL = ("loss", "perplexity", "rise")
"""Metrics that are not shares, and so are not shown in percent."""
_NAME_WIDTH = 18
_SCORES = f"{'':20}{'score':>8}  {'95 % interval':<17}"
_DIFFERENCES = f"{{:>7}}  {'95 % interval':<18}{'p':>6}"


def screen_table(results: Results) -> str:
    """Return all scores with their intervals, and the differences to the first model, if any.

    Shares are in percent. Differences between other models follow.
    """
    first = results.scores[0].model if results.scores else ""
    header = _SCORES
    if any(found.models[0] == first for found in results.comparisons):
        header += _DIFFERENCES.format("to base" if first == BASE else "to 1st")
    lines, heading = [header.rstrip(), "-" * len(header)], ("", "")
    for score in results.scores:
        if (score.task, score.metric) != heading:
            heading = score.task, score.metric
            lines.append(f"{score.task}, {score.metric} ({_counts(results, score)})")
        to_first = [c for c in _of(results, score) if c.models == (first, score.model)]
        difference = _difference(to_first[0]) if to_first else ""
        value = number(score.metric, score.estimate.score)
        lines.append(
            f"  {shortened(score.model):<{_NAME_WIDTH}}{value:>8}"
            f"  {interval(score.metric, score.estimate.interval):<17}{difference}".rstrip()
        )
    others = [c for c in results.comparisons if first not in c.models]
    if others:
        lines += ["", "Between the others, on the same questions"]
        for models in dict.fromkeys(found.models for found in others):
            lines.append(f"{models[0]} to {models[1]}")
            for found in others:
                if found.models == models:
                    lines.append(f"  {f'{found.task}, {found.metric}':<45}{_difference(found)}")
    return "\n".join(lines)


def markdown_scores(results: Results) -> str:
    """Return a table in Markdown with a row for each score."""
    rows = [["task", "metric", "model", "score", "95 % interval", "n"]]
    for score in results.scores:
        rows.append(
            [
                score.task,
                score.metric,
                score.model,
                number(score.metric, score.estimate.score),
                interval(score.metric, score.estimate.interval),
                f"{score.estimate.n:,}",
            ]
        )
    return _markdown(rows)


def markdown_comparisons(results: Results) -> str:
    """Return a table in Markdown with a row for each comparison of two models."""
    rows = [["task", "metric", "from", "to", "difference", "95 % interval", "p", "test", "n"]]
    for found in results.comparisons:
        result = found.result
        rows.append(
            [
                found.task,
                found.metric,
                *found.models,
                number(found.metric, result.difference, signed=True),
                interval(found.metric, result.interval, signed=True),
                _p(result.p),
                result.test,
                f"{found.n:,}",
            ]
        )
    return _markdown(rows)


def describe_units(results: Results) -> str:
    """Return what a reader has to know of the numbers of `screen_table`; empty for nothing."""
    notes = []
    if any(score.metric not in NATURAL for score in results.scores):
        notes.append("Shares are in percent")
    if results.comparisons:
        notes.append("p is that of McNemar's exact test, or of random exchanges")
    return f"{'; '.join(notes)}." if notes else ""


def refusal_scores(results: Results) -> list[tuple[str, str, str, Score, Score]]:
    """Return the models' refusals of harmful and of harmless prompts, side by side.

    Returns:
        Of each pair of tasks: both names, the model, and its two scores.
    """
    by_task: dict[str, dict[str, Score]] = {}
    for score in results.scores:
        if score.metric == "refused":
            by_task.setdefault(score.task, {})[score.model] = score
    return [
        (harmful, harmless, model, by_task[harmful][model], by_task[harmless][model])
        for harmful in by_task
        for harmless in by_task
        if base_name(harmful) == "safety" and base_name(harmless) == "overrefusal"
        for model in by_task[harmful]
        if model in by_task[harmless]
    ]


def refusal_table(results: Results) -> str:
    """Return refusals of harmful and of harmless prompts as text; empty where one is missing."""
    lines: list[str] = []
    for _, _, model, first, second in refusal_scores(results):
        if not lines:
            lines.append(f"{'Refused, %':20}{'harmful':>8}{'harmless':>30}")
        lines.append(
            f"  {shortened(model):<{_NAME_WIDTH}}{number('', first.estimate.score):>8}"
            f"  {interval('', first.estimate.interval):<18}{number('', second.estimate.score):>10}"
            f"  {interval('', second.estimate.interval)}"
        )
    return "\n".join(lines)


def number(metric: str, value: float, *, signed: bool = False) -> str:
    """Return a score or a difference as text; a share in percent, and a dash for none."""
    if math.isnan(value):
        return "-"
    sign = "+" if signed else ""
    if metric in NATURAL and signed:
        return f"{value:+.4f}"
    return f"{value:.4g}" if metric in NATURAL else f"{100 * value:{sign}.1f}"


def interval(metric: str, bounds: Interval, *, signed: bool = False) -> str:
    """Return an interval as text."""
    low, high = (number(metric, bound, signed=signed) for bound in bounds)
    return f"[{low}, {high}]"


def shortened(name: str) -> str:
    """Return a model's name as far as the table has room: its end, which tells more."""
    return name if len(name) <= _NAME_WIDTH else f"...{name[3 - _NAME_WIDTH :]}"


def _counts(results: Results, heading: Score) -> str:
    """Return how many questions the scores of a task and metric are of."""
    texts = {}
    for score in results.scores:
        if (score.task, score.metric) == (heading.task, heading.metric):
            judged = f", {score.num_unjudged} not judged" if score.num_unjudged else ""
            texts[score.model] = f"n = {score.estimate.n:,}{judged}"
    if len(set(texts.values())) == 1:
        return texts[heading.model]
    return "; ".join(f"{shortened(model)}: {text}" for model, text in texts.items())


def _difference(found: Comparison) -> str:
    result = found.result
    return (
        f"{number(found.metric, result.difference, signed=True):>7}  "
        f"{interval(found.metric, result.interval, signed=True):<18}{_p(result.p):>6}"
    )


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}"


def _of(results: Results, score: Score) -> list[Comparison]:
    return [c for c in results.comparisons if (c.task, c.metric) == (score.task, score.metric)]


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(
        f"| {' | '.join(c.replace('|', chr(92) + '|') for c in row)} |" for row in lines
    )
