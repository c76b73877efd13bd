"""From rows to scores, and to what a person is shown of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diablo_ds.evaluation.inputs import TaskInput
from diablo_ds.evaluation.items import GENERATION, LOSS, Key, asks_of
from diablo_ds.evaluation.judging import JUDGEMENT
from diablo_ds.evaluation.question import Question
from diablo_ds.evaluation.report import report
from diablo_ds.evaluation.results import compute_results
from diablo_ds.evaluation.tables import describe_units, screen_table
from diablo_ds.evaluation.tasks import find_task

NUM_QUESTIONS = 4


def given(name, **values):
    """A task with questions that have numbers as ids."""
    task = find_task(name)
    asks = asks_of(task)
    numbers = range(1, 1 + NUM_QUESTIONS)
    questions = () if LOSS in asks else tuple(Question(str(n), "?") for n in numbers)
    return replace(TaskInput(task, Path(name), "0" * 64, asks, questions), **values)


def rows_of(model, task, num_rows=NUM_QUESTIONS, num_truncated=0):
    """Rows of answers, the first of which are to prompts that were cut."""
    kind = LOSS if task == "loss" else GENERATION
    rows: dict[Key, dict[str, Any]] = {}
    for number in range(1, 1 + num_rows):
        row: dict[str, Any] = {"is_truncated": number <= num_truncated}
        if kind == LOSS:
            row |= {"nats": 1.5 * number, "num_targets": 2}
        else:
            score = float(number % 2)
            row["scores"] = {"accuracy": score, "last_number": score}
        rows[Key(model, task, kind, str(number), 0)] = row
    return rows


class OnePass(dict[Key, Any]):
    """Rows that can be gone through once; each is found by its key as often as wanted."""

    passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        assert self.passes == 1
        return super().__iter__()

    def items(self) -> Any:
        iter(self)
        return super().items()

    def values(self) -> Any:
        iter(self)
        return super().values()


def test_all_rows_are_gone_through_once_for_all_models_and_tasks():
    models, names = ["base", "a", "b"], ["gsm8k", "loss"]
    rows = OnePass()
    for model in models:
        for name in names:
            rows |= rows_of(model, name, num_truncated=2 if model == "a" else 0)
    results = compute_results([given(name) for name in names], models, rows)
    assert results.truncated == {"a": {"gsm8k": ["1", "2"], "loss": ["1", "2"]}}
    assert {score.model for score in results.scores} == set(models)


def test_prompts_beyond_a_lower_limit_are_not_listed_as_truncated():
    rows = {}
    for name in ("gsm8k", "loss"):
        rows |= rows_of("base", name, 6, num_truncated=6)
    inputs = [given("gsm8k"), given("loss", limit=3)]
    results = compute_results(inputs, ["base"], rows)
    assert results.truncated["base"] == {"gsm8k": ["1", "2", "3", "4"], "loss": ["1", "2", "3"]}
    assert [score.estimate.n for score in results.scores] == [4, 4, 3, 3]


def results_of(models, *names):
    rows = {}
    for model in models:
        for name in names:
            rows |= rows_of(model, name)
    return compute_results([given(name) for name in names], models, rows)


@pytest.mark.parametrize("name", ["gsm8k", "loss"])
def test_a_single_model_is_compared_with_nothing(name, tmp_path):
    results = results_of(["base"], name)
    shown = screen_table(results)
    assert "to base" not in shown
    assert not shown.splitlines()[0].endswith("p")
    units = describe_units(results)
    assert units == ("Shares are in percent." if name == "gsm8k" else "")
    run = {"models": {"base": "base"}}
    said = report(tmp_path, results, [given(name)], ["base"], {}, run)
    page = (tmp_path / "report.md").read_text()
    for text in (said, page):
        assert "McNemar" not in text
        assert "to base" not in text
        assert "Differences" not in text
        assert ("hares are in percent" in text) == (name == "gsm8k")


def test_several_models_are_compared_with_the_first():
    shown = screen_table(results_of(["base", "a"], "gsm8k", "loss"))
    header, rule, *_ = shown.splitlines()
    assert header.split()[-5:] == ["base", "95", "%", "interval", "p"]
    assert len(header) == len(rule) == 80
    assert max(map(len, shown.splitlines())) <= 80
    without_base = screen_table(results_of(["runs/a", "b"], "gsm8k")).splitlines()[0]
    assert "to 1st" in without_base
    assert len(without_base) == 80
    units = describe_units(results_of(["base", "a"], "loss"))
    assert units.startswith("p is that of")


def test_a_model_that_no_judgement_is_known_of_is_shown_with_none(tmp_path):
    task = given("safety")
    rows = rows_of("base", "safety") | rows_of("mine", "safety")
    for (model, *_), known in zip((("base",), ("mine",)), (1, 0), strict=True):
        for number in range(1, 1 + NUM_QUESTIONS):
            key = Key(model, "safety", JUDGEMENT, str(number))
            scores = {"judged_refused": 1.0} if number <= known else {}
            rows[key] = {"scores": scores, "is_truncated": False}
    results = compute_results([task], ["base", "mine"], rows)
    found = {s.model: s.as_json() for s in results.scores if s.metric == "judged_refused"}
    assert [found[name]["n"] for name in ("base", "mine")] == [1, 0]
    assert [found[name]["num_unjudged"] for name in ("base", "mine")] == [3, 4]
    assert found["mine"]["score"] is None
    text = screen_table(results)
    assert "base: n = 1, 3 not judged; mine: n = 0, 4 not judged" in text
    run = {"models": {"base": "base", "mine": "mine"}}
    assert "- " in report(tmp_path, results, [task], ["base", "mine"], {}, run)
