"""From rows to scores with intervals, and differences between models on the same questions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from diablo_ds.evaluation.inputs import TaskInput
from diablo_ds.evaluation.items import LOSS, Key, values_by_metric
from diablo_ds.evaluation.judging import JUDGEMENT
from diablo_ds.evaluation.model_names import BASE
from diablo_ds.evaluation.predictions import Row
from diablo_ds.evaluation.scores import loss_scores
from diablo_ds.evaluation.statistics import (
    Difference,
    Estimate,
    Interval,
    estimate,
    paired_difference,
)
from diablo_ds.files.strict_json import finite

_NO_SCORE = Estimate(math.nan, 0, Interval(math.nan, math.nan))
"""Of a model of whose answers a judge said neither."""
_COMPARED = "loss"
"""The metric by which models are compared on texts."""


@dataclass(frozen=True)
class Score:
    """The score of a model in a task."""

    model: str
    task: str
    metric: str
    estimate: Estimate
    num_unjudged: int = 0
    """Answers of which a judge said neither, which are left out."""

    def as_json(self) -> dict[str, Any]:
        """Return the score as a JSON object."""
        value: dict[str, Any] = {
            "model": self.model,
            "task": self.task,
            "metric": self.metric,
            "score": finite(self.estimate.score),
            "n": self.estimate.n,
            "interval": list(map(finite, self.estimate.interval)),
        }
        return value | ({"num_unjudged": self.num_unjudged} if self.num_unjudged else {})


@dataclass(frozen=True)
class Comparison:
    """How much higher the second model's score is than the first's."""

    task: str
    metric: str
    models: tuple[str, str]
    n: int
    """Questions that both answered."""
    result: Difference

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as a JSON object."""
        return {
            "task": self.task,
            "metric": self.metric,
            "models": list(self.models),
            "difference": finite(self.result.difference),
            "interval": list(map(finite, self.result.interval)),
            "p": finite(self.result.p),
            "test": self.result.test,
            "n": self.n,
        }


@dataclass
class Results:
    """The scores of an evaluation, in the order of its tasks, metrics and models."""

    scores: list[Score] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    truncated: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """Ids of the questions whose prompts were too long, by model and task."""


def compute_results(
    inputs: Sequence[TaskInput], models: Sequence[str], rows: Mapping[Key, Row]
) -> Results:
    """Compute all scores and comparisons.

    Args:
        inputs: the tasks.
        models: names of the models, the base first.
        rows: an answer to each question; of a text those that there are.
    """
    results = Results()
    truncated: dict[tuple[str, str], dict[str, None]] = {}  # of each the ids, once, in order
    judged = set()  # model and task of which a judge was asked
    for key, row in rows.items():
        if key.kind == JUDGEMENT:
            judged.add((key.model, key.task))
        if row["is_truncated"]:
            truncated.setdefault((key.model, key.task), {})[key.id] = None
    for given in inputs:
        if LOSS in given.asks:
            _add_losses(results, given, models, rows)
        else:
            _add_scores(results, given, models, rows, judged)
        known = {question.id for question in given.questions}
        for model in models:
            ids = truncated.get((model, given.name), {})
            asked = [i for i in ids if i in known or (LOSS in given.asks and given.takes(i))]
            if asked:  # and not only with another limit
                results.truncated.setdefault(model, {})[given.name] = asked
    return results


def pairs_of(models: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of models that are compared: the base with each, then the others."""
    return list(itertools.combinations(models, 2))


def _add_scores(
    results: Results,
    given: TaskInput,
    models: Sequence[str],
    rows: Mapping[Key, Row],
    judged_ones: Set[tuple[str, str]],
) -> None:
    """Add scores and comparisons; of the models and tasks judged, also where nothing is known."""
    values = {model: _values(given, model, rows) for model in models}
    judged = given.task.judge_model.metrics if given.task.judge_model else ()
    for metric in (*given.task.metrics, *judged):
        for model in models:
            by_id = values[model].get(metric, {})
            if by_id or (metric in judged and (model, given.name) in judged_ones):
                num_unjudged = len(given.questions) - len(by_id) if metric in judged else 0
                score = estimate(list(by_id.values())) if by_id else _NO_SCORE
                results.scores.append(Score(model, given.name, metric, score, num_unjudged))
        for first, second in pairs_of(models):
            before, after = values[first].get(metric, {}), values[second].get(metric, {})
            shared = [key for key in before if key in after]
            if shared:
                found = paired_difference([before[k] for k in shared], [after[k] for k in shared])
                pair = (first, second)
                results.comparisons.append(Comparison(given.name, metric, pair, len(shared), found))


def _values(given: TaskInput, model: str, rows: Mapping[Key, Row]) -> dict[str, dict[str, float]]:
    """Return the score of each question by metric and id."""
    task = given.task
    values = values_by_metric(
        task, given.asks, model, given.questions, lambda key: rows[key]["scores"]
    )
    for metric in task.judge_model.metrics if task.judge_model else ():
        for question in given.questions:
            key = Key(model, given.name, JUDGEMENT, question.id)
            judged = [rows.get(key._replace(sample=n), {}) for n in range(task.num_samples)]
            known = [row["scores"][metric] for row in judged if metric in row.get("scores", {})]
            if known:
                values.setdefault(metric, {})[question.id] = sum(known) / len(known)
    return values


def _add_losses(
    results: Results, given: TaskInput, models: Sequence[str], rows: Mapping[Key, Row]
) -> None:
    found = {model: _losses(given, model, rows) for model in models}
    base = found.get(BASE)
    by_model = {}
    for model, (nats, targets) in found.items():
        is_same = base is not None and model != BASE and base[1] == targets
        base_nats = base[0] if base is not None and is_same else None
        by_model[model] = loss_scores(given.task, nats, targets, base_nats)
    for metric in given.task.metrics:
        for model in models:
            if metric in by_model[model]:
                score = by_model[model][metric]
                results.scores.append(Score(model, given.name, metric, score))
    for first, second in pairs_of(models):
        if found[first][1] == found[second][1]:  # the same tokens
            nats, targets = found[first]
            difference = paired_difference(nats, found[second][0], targets)
            pair = (first, second)
            results.comparisons.append(
                Comparison(given.name, _COMPARED, pair, len(nats), difference)
            )


def _losses(given: TaskInput, model: str, rows: Mapping[Key, Row]) -> tuple[list[float], list[int]]:
    """Return nats and targets of each example that has targets, in order."""
    mine: list[Row] = []
    for number in itertools.count(1):
        row = rows.get(Key(model, given.name, LOSS, str(number), 0))
        if row is None or not given.takes(str(number)):
            break
        mine.append(row)
    mine = [row for row in mine if row["num_targets"]]
    nats = [float("nan") if row["nats"] is None else row["nats"] for row in mine]
    return nats, [row["num_targets"] for row in mine]
