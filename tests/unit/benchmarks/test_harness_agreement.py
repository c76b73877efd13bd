"""Our answers and those of lm-evaluation-harness, on a tiny model and rows of published forms."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is in the extra [bench]")

from benchmarks.agreement import TOLERANCE_NATS, agreement_report, compare
from benchmarks.evaluate_methods import Harness, Ours, Part, Single
from benchmarks.evaluate_report import GOALS, evaluation_report
from benchmarks.harness import harness_task, load_harness_model, run_harness
from diablo_ds.evaluation.items import CHOICE, GENERATION
from tests.tiny import save_model

pytestmark = [
    pytest.mark.slow,  # imports lm_eval
    # Of lm_eval, its libraries, and transformers' own deprecations.
    pytest.mark.filterwarnings("ignore"),
]
COUNT = 6
WHERE = {"hardware": "a CPU", "python": "3", "versions": {}, "threads": 1, "model": "tiny"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    # Positions for the prompt of the template alpaca: a token for each byte.
    path = tmp_path_factory.mktemp("model")
    return save_model(path, max_position_embeddings=1024)


@pytest.fixture(scope="module")
def ours(folder):
    return Ours(folder)


@pytest.fixture(scope="module")
def harness(folder):
    return load_harness_model(folder, 4)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    questions = [
        {
            "instruction": f"Is {n} even?\n\nAnswer format: true/false",
            "input": "",
            "output": f"the correct answer is {answer}",
            "answer": answer,
        }
        for n in range(1, COUNT + 1)
        for answer in ("false" if n % 2 else "true",)
    ]
    (data / "boolq.json").write_text(json.dumps(questions))
    problems = [
        {"question": "What is 2 + " + "1" * n + "?", "answer": f"#### {2 + int('1' * n)}"}
        for n in range(1, COUNT + 1)
    ]
    (data / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    return {
        CHOICE: Part("boolq", CHOICE, COUNT, 0, str(data / "boolq.json")),
        GENERATION: Part("gsm8k", GENERATION, COUNT, 8, str(data / "gsm8k.jsonl")),
    }


def test_choices_are_those_of_the_harness(ours, harness, parts):
    found = compare(parts[CHOICE], ours, harness)
    assert found["equal"] == found["equal_norm_with_white_space"] == COUNT, found
    assert found["score"] == found["harness_score"]
    assert found["largest_difference_nats"] < TOLERANCE_NATS


def test_answers_are_those_of_the_harness(ours, harness, parts):
    found = compare(parts[GENERATION], ours, harness)
    assert found["equal"] == found["equal_scores"] == COUNT, found
    assert json.loads(json.dumps(found)) == found  # it is written as it is


def test_the_harness_is_asked_with_our_prompts(harness, parts):
    asked = parts[CHOICE].read()
    samples = run_harness(harness, harness_task(asked, CHOICE), 2)
    for text, question, sample in zip(asked.texts(), asked.questions, samples, strict=False):
        assert [tuple(pair) for pair in sample["arguments"]] == [
            (text, choice) for choice in question.choices
        ]
        assert sample["target"] == question.correct


def test_another_answer_is_found_and_reported(ours, harness, parts, tmp_path):
    asked = parts[CHOICE].read()
    samples = run_harness(harness, harness_task(asked, CHOICE), COUNT)
    first, second = samples[0]["filtered_resps"]
    samples[0]["filtered_resps"] = [second, first]
    samples[0]["acc"] = 1 - samples[0]["acc"]
    from benchmarks.agreement import compare_choices

    found = compare_choices(asked, ours.results(asked, CHOICE), samples)
    assert found["different"] == [asked.questions[0].id]
    assert found["largest_difference_nats"] > TOLERANCE_NATS
    lines = tmp_path / "agreement.jsonl"
    line = {"task": "boolq", "kind": CHOICE, "date": "a day", "model": "tiny", **WHERE, **found}
    lines.write_text(json.dumps(line) + "\n")
    assert f"{COUNT - 1} of {COUNT}" in agreement_report(lines)


def test_all_methods_of_the_benchmark_answer_alike_and_are_reported(folder, ours, parts):
    methods = {
        "diablo_ds": ours,
        "one at a time": Single(folder),
        "lm-evaluation-harness": Harness(folder),
    }
    lines = []
    for part in parts.values():
        asked = part.read()
        for name, method in methods.items():
            answers = method.answer(asked, part.kind, 4)
            line = {"seconds": 1.0, "cpu_s": 1.0, "memory_bytes": 1, "load": 0.0, "batch_size": 4}
            line |= {"task": part.task, "kind": part.kind, "method": name, "step": "measured"}
            line |= {"questions": COUNT, "places": list(range(COUNT)), "answers": answers}
            lines.append(line)
        line = {"task": part.task, "kind": part.kind, "step": "search", "batch_size": 4}
        lines.append(line | {"seconds": 1.0, "questions": COUNT, "load": 0.0, "method": "x"})
    page = evaluation_report(lines, list(parts.values()), WHERE, folder)
    assert page.count(f"{COUNT} of {COUNT}") == len(GOALS) * len(parts)
    assert page.count("missed") == len(GOALS) * len(parts)
