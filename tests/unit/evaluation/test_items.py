"""What a model is asked for a task: prompts that fit, seeds of answers, and scores of questions."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest

from diablo_ds.errors import UserError
from diablo_ds.evaluation import items as asked
from diablo_ds.evaluation.items import CHOICE, GENERATION, LOSS
from diablo_ds.evaluation.question import Question
from diablo_ds.evaluation.task_data import data_digest, find_data, parse_data_paths, read_first
from diablo_ds.evaluation.tasks import find_task
from diablo_ds.model.requests import ChoiceResult, Generation
from tests.tiny import tiny_tokenizer

QUESTIONS = [Question("1", "a", reference="2"), Question("2", "bb", reference="4")]
PROMPTS = [(1, 2, 3), (1, 2, 3, 4, 5, 6)]


def _generations(task, **options):
    return asked.generation_items(
        "base", task, QUESTIONS, PROMPTS, "plain", tiny_tokenizer(), end_ids=frozenset(), **options
    )


def test_what_is_asked_follows_from_the_metrics():
    boolq = find_task("boolq")
    assert asked.asks_of(boolq) == (GENERATION, CHOICE)
    assert asked.asks_of(dataclasses.replace(boolq, metrics=("choice_norm",))) == (CHOICE,)
    assert asked.asks_of(find_task("gsm8k")) == (GENERATION,)
    assert asked.asks_of(find_task("loss:wiki")) == (LOSS,)


def test_prompts_that_do_not_fit_lose_their_beginning_and_are_marked():
    task = dataclasses.replace(find_task("jsonl"), max_new_tokens=4)
    first, second = _generations(task, max_positions=8)
    assert (first.request.prompt, first.is_truncated) == ((1, 2, 3), False)
    assert (second.request.prompt, second.is_truncated) == ((3, 4, 5, 6), True)
    with_start = dataclasses.replace(tiny_tokenizer(), start_ids=(1,))
    assert asked.cut_prompt(PROMPTS[1], 3, with_start) == (1, 5, 6)
    with pytest.raises(UserError, match="at most half of a model's positions"):
        _generations(task, max_positions=7)


def test_answers_have_seeds_of_their_own():
    task = dataclasses.replace(find_task("jsonl"), num_samples=3, temperature=1.0)
    seeds = [item.request.seed for item in _generations(task)]
    assert len(set(seeds)) == 6
    assert seeds == [item.request.seed for item in _generations(task)]
    assert not set(seeds) & {item.request.seed for item in _generations(task, seed=1)}


def test_verdicts_become_scores_of_questions():
    boolq = find_task("boolq")
    choices = ("the correct answer is true", "the correct answer is false")
    question = Question("1", "a", reference="false", choices=choices, correct=1)
    generation = asked.generation_items(
        "m", boolq, [question], [(1,)], "alpaca", tiny_tokenizer(), end_ids=frozenset()
    )
    choice = asked.choice_items("m", boolq, [question], [(1,)], [((2,), (3,))], tiny_tokenizer())
    results = [Generation((), choices[1], "end"), ChoiceResult((-1.0, -3.0), (True, False))]
    verdicts = {
        item.key: asked.verdict_of(boolq, item, result)
        for item, result in zip([*generation, *choice], results, strict=True)
    }
    found = asked.values_by_metric(
        boolq, asked.asks_of(boolq), "m", [question], lambda key: verdicts[key].scores
    )
    assert found == {"generation": {"1": 1.0}, "choice": {"1": 0.0}, "choice_norm": {"1": 0.0}}


def test_data_of_tasks_are_found_and_read(tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [f'{{"prompt": "{n}", "reference": "{n}"}}\n' for n in range(3)]
    file.write_text("".join(rows))
    task = find_task("jsonl")
    assert [q.id for q in read_first(task, file, 2)] == ["1", "2"]
    assert len(read_first(task, file, 0)) == 3
    digest = data_digest(task, file)
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_text("".join([*rows, "{}\n"]))
    assert data_digest(task, file) != digest
    with pytest.raises(UserError, match="line 4"):  # also behind the limit
        read_first(task, file, 2)
    assert find_data(task, file, "--data") == file
    with pytest.raises(UserError, match="give --data jsonl=PATH"):
        find_data(task, None, "--data")
    with pytest.raises(UserError, match="a path that exists"):
        find_data(task, tmp_path / "b", "--data")


@pytest.mark.parametrize(
    ("texts", "part"),
    [
        (["x"], "must be TASK=PATH"),
        (["=x"], "must be TASK=PATH"),
        (["b=x"], "one of the tasks a, c:d"),
        (["a=x", "a=y"], "once"),
    ],
)
def test_paths_of_data_name_their_task(texts, part):
    with pytest.raises(UserError, match=part):
        parse_data_paths(texts, ["a", "c:d"], "data")
    assert parse_data_paths(["c:d=x=y"], ["a", "c:d"], "data")["c:d"].name == "x=y"
