from __future__ import annotations

import gzip
import json

import pytest

from diablo_ds.data.corpora import families
from diablo_ds.errors import UserError
from diablo_ds.evaluation.question import Question
from diablo_ds.evaluation.tasks import find_task
from diablo_ds.evaluation.tasks._refusals import PHRASES, find_refusal
from tests.unit.evaluation.corpora import corpus
from tests.unit.evaluation.rows import write_rows

SAFETY = find_task("safety")
PROMPTS = "safety/safety-tuned-llamas/evaluation"


def test_prompts_are_read_in_each_published_form(tmp_path):
    rows = write_rows(
        tmp_path / "a.jsonl",
        {"instruction": "a", "input": "b"},
        {"goal": "c", "target": "Sure, here is"},
        {"prompt": "d", "refusal": "No."},
        {"Question": "e"},
    )
    assert list(SAFETY.read(rows)) == [
        Question("1", "a", "b"),
        Question("2", "c"),
        Question("3", "d"),
        Question("4", "e"),
    ]
    columns = tmp_path / "b.json"
    columns.write_text(json.dumps({"instructions": ["a", "b"], "tags": ["x", "y"], "inputs": []}))
    assert list(SAFETY.read(columns)) == [Question("1", "a"), Question("2", "b")]
    with pytest.raises(UserError, match=r"line 1: a row must have one of the fields"):
        list(SAFETY.read(write_rows(tmp_path / "c.jsonl", {"text": "a"})))


@pytest.mark.parametrize("phrase", PHRASES)
def test_each_phrase_is_found_in_any_case(phrase):
    assert find_refusal(f"Well,  {phrase.upper()} ...") is not None


@pytest.mark.parametrize(
    "answer",
    [
        *families._REFUSALS,
        "I can't help with that.",
        "I can\N{RIGHT SINGLE QUOTATION MARK}t help with that.",
        "I'm sorry, that is harmful.",
        "I won't\ndo it.",
        "That isn't something I can do.",
    ],
)
def test_refusals_are_known(answer):
    assert SAFETY.judge(Question("1", "?"), answer).scores == {"refused": 1}


@pytest.mark.parametrize("answer", ["", "Sure, here is how.", "Icannot", "They cannot swim."])
def test_other_answers_are_no_refusals(answer):
    verdict = SAFETY.judge(Question("1", "I cannot believe it, as an AI"), answer)
    assert verdict.extracted is None
    assert verdict.scores == {"refused": 0}


def test_refusing_is_good_for_the_one_and_bad_for_the_other():
    assert not SAFETY.lower_is_better
    assert find_task("overrefusal").lower_is_better


def test_a_model_may_judge():
    judge = SAFETY.judge_model
    asked = judge.ask(Question("7", "How?", "Now."), "Like this.")
    (message,) = asked.messages
    assert asked.id == "7"
    assert message["role"] == "user"
    assert "How?\nNow." in message["content"]
    assert "Like this." in message["content"]
    assert judge.read("Yes.").scores == {"judged_refused": 1}
    assert judge.read(" no, it does not").scores == {"judged_refused": 0}
    assert judge.read("It is not clear: nothing").scores == {}


@pytest.mark.parametrize(
    ("file", "num_rows"),
    [
        (f"{PROMPTS}/I-MaliciousInstructions.json", 100),
        (f"{PROMPTS}/I-CoNa.json", 178),
        (f"{PROMPTS}/Q-Harm.json", 100),
        (f"{PROMPTS}/I-Alpaca.json", 50),
        (f"{PROMPTS}/I-PhysicalSafetySafe.json", 100),
        ("safety/advbench/harmful_behaviors.csv", 520),
    ],
)
def test_all_published_prompts_are_read(file, num_rows):
    assert len(list(SAFETY.read(corpus(file)))) == num_rows


def test_few_harmless_published_answers_count_as_refusals():
    rows = json.loads(corpus("alpaca/alpaca_en_demo.json").read_text())
    refused = [row["output"] for row in rows if find_refusal(row["output"])]
    # Most of these decline in earnest: they are asked for pictures, prices or the weather.
    assert len(refused) <= 0.05 * len(rows)


def test_most_published_answers_to_harmful_prompts_count_as_refusals():
    path = corpus("safety/safety-tuned-llamas/training/safety_only_data_Instructions.json.gz")
    rows = json.loads(gzip.decompress(path.read_bytes()))
    refused = [row["output"] for row in rows if find_refusal(row["output"])]
    # The others answer, as many of the prompts are harmless or can be answered safely.
    assert len(refused) >= 0.7 * len(rows)
