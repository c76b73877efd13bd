"""From verdicts to the scores of questions and of tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from diablo_ds.evaluation.question import Question, Verdict
from diablo_ds.evaluation.statistics import (
    Estimate,
    Interval,
    estimate,
    paired_difference,
    pass_at_k,
)
from diablo_ds.evaluation.task import Task

PASSED = "passed"
"""The score of one sample of a task that runs code."""
_PASS_AT = "pass@"


def judge_choices(question: Question, log_likelihoods: Sequence[float]) -> Verdict:
    """Choose the likeliest answer, as lm-evaluation-harness does for multiple choice.

    The metric choice compares the log-likelihoods themselves, choice_norm (acc_norm there) each
    divided by the number of characters of its choice. Of equal ones the first is taken.

    Args:
        question: with the choices.
        log_likelihoods: of each choice, in nats, summed over its tokens.
    """
    lengths = [len(choice) for choice in question.choices]
    normalised = [value / length for value, length in zip(log_likelihoods, lengths, strict=True)]
    raw = _first_largest(log_likelihoods)
    return Verdict(
        question.choices[raw],
        {
            "choice": float(raw == question.correct),
            "choice_norm": float(_first_largest(normalised) == question.correct),
        },
    )


def question_scores(task: Task, samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the scores of one question by metric, over all answers that were generated to it.

    Args:
        task: names the metrics.
        samples: the scores of each answer; of a task that runs code, `PASSED`.

    Returns:
        Means over the answers, and the unbiased pass@k for each k up to their number.
    """
    scores: dict[str, float] = {}
    for metric in task.metrics:
        if metric.startswith(_PASS_AT):
            k = int(metric.removeprefix(_PASS_AT))
            if k <= len(samples):
                num_passed = sum(sample[PASSED] == 1 for sample in samples)
                scores[metric] = pass_at_k(len(samples), num_passed, k)
        elif all(metric in sample for sample in samples):
            scores[metric] = math.fsum(sample[metric] for sample in samples) / len(samples)
    return scores


def loss_scores(
    task: Task,
    nats: Sequence[float],
    num_targets: Sequence[int],
    base_nats: Sequence[float] | None = None,
) -> dict[str, Estimate]:
    """Return the scores of a task of the kind "loss" by metric.

    Args:
        task: names the metrics.
        nats: the loss of each example, summed over its target tokens.
        num_targets: target tokens of each example.
        base_nats: the base's loss of each example; without it there is no rise.

    Returns:
        The loss in nats per target token; the perplexity, its exponential; and the rise of the
        loss over the base's.
    """
    loss = estimate(nats, num_targets)
    scores = {"loss": loss}
    low, high = loss.interval
    interval = Interval(_exp(low), _exp(high))
    scores["perplexity"] = Estimate(_exp(loss.score), loss.n, interval)
    if base_nats is not None:
        rise = paired_difference(base_nats, nats, num_targets)
        scores["rise"] = Estimate(rise.difference, loss.n, rise.interval)
    return {metric: scores[metric] for metric in task.metrics if metric in scores}


def _exp(value: float) -> float:
    """Return the exponential; infinite where it is too large for a float."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _first_largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda index: (values[index], -index))
