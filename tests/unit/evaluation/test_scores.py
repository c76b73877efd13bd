from __future__ import annotations

import math

import pytest

from diablo_ds.evaluation.question import Question
from diablo_ds.evaluation.scores import judge_choices, loss_scores, question_scores
from diablo_ds.evaluation.statistics import Estimate, paired_difference
from diablo_ds.evaluation.tasks import find_task


@pytest.mark.parametrize(
    ("log_likelihoods", "chosen", "scores"),
    [
        ([-3.0, -6.0], "long choice", (1, 0)),
        ([-8.0, -3.0], "short", (0, 0)),
        ([-11.0, -6.0], "short", (0, 1)),
        ([-4.0, -4.0], "long choice", (1, 1)),
    ],
)
def test_choices_are_compared_raw_and_by_their_characters(log_likelihoods, chosen, scores):
    question = Question("1", "?", choices=("long choice", "short"), correct=0)
    verdict = judge_choices(question, log_likelihoods)
    assert verdict.extracted == chosen
    raw = float(log_likelihoods[0] >= log_likelihoods[1])
    norm = float(log_likelihoods[0] / 11 >= log_likelihoods[1] / 5)
    assert verdict.scores == {"choice": raw, "choice_norm": norm}


def test_samples_give_pass_at_k_and_means():
    samples = [{"passed": 1.0}] * 2 + [{"passed": 0.0}] * 4
    assert question_scores(find_task("humaneval"), samples) == pytest.approx(
        {"pass@1": 2 / 6, "pass@5": 1}
    )
    assert question_scores(find_task("mbpp"), [{"passed": 1.0}]) == {"pass@1": 1}
    gsm8k = [{"accuracy": 1.0, "last_number": 0.0}, {"accuracy": 0.0, "last_number": 0.0}]
    assert question_scores(find_task("gsm8k"), gsm8k) == {"accuracy": 0.5, "last_number": 0}


def test_losses_give_perplexity_and_the_rise_over_the_base():
    nats, targets, base = [2.0, 9.0, 5.0], [1, 3, 4], [1.0, 6.0, 5.0]
    scores = loss_scores(find_task("forgetting"), nats, targets, base)
    assert list(scores) == ["loss", "perplexity", "rise"]
    assert scores["loss"].score == 2
    assert scores["perplexity"].score == pytest.approx(math.exp(2))
    assert scores["perplexity"].interval == pytest.approx(
        [math.exp(end) for end in scores["loss"].interval]
    )
    rise = paired_difference(base, nats, targets)
    assert scores["rise"] == Estimate(0.5, 3, rise.interval)
    assert list(loss_scores(find_task("loss"), nats, targets, base)) == ["loss", "perplexity"]
    assert list(loss_scores(find_task("forgetting"), nats, targets)) == ["loss", "perplexity"]
    assert loss_scores(find_task("loss"), [1e4], [1])["perplexity"].score == math.inf
