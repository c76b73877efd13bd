"""`diablo-ds evaluate`: on one device and on several ranks, interrupted and continued."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from transformers import AutoModelForCausalLM

import diablo_ds
from diablo_ds.cli.evaluate import evaluate
from diablo_ds.cli.options import from_options
from diablo_ds.evaluation.description import describe_evaluation
from diablo_ds.evaluation.options import EvaluateOptions
from diablo_ds.launcher.status import describe_status
from diablo_ds.ranks.free_port import free_port
from tests import forked
from tests.e2e.commands import assert_user_error
from tests.tiny import save_model, write_pairs
from tests.waiting import WAIT_S

pytestmark = pytest.mark.e2e
NUM_QUESTIONS = 6


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A base, an adapter on it, both merged, and data of three tasks."""
    folder = tmp_path_factory.mktemp("evaluate")
    base = save_model(folder / "tiny", initializer_range=0.3, max_position_embeddings=512)
    model = AutoModelForCausalLM.from_pretrained(base)
    for delta in diablo_ds.attach(model, 4).values():
        nn.init.normal_(delta, std=0.3)
    diablo_ds.save(model, folder / "adapter-a")
    forked.diablo_ds("merge", "--adapter", folder / "adapter-a", "--output", folder / "merged")
    numbers = [
        {"question": f"What is {n} and 2? {'Think. ' * n}", "answer": f"It is.\n#### {n + 2}"}
        for n in range(NUM_QUESTIONS)
    ]
    answers = [
        {
            "instruction": f"Please answer with true or false, question: is {n} even?"
            "\n\nAnswer format: true/false",
            "input": "",
            "output": f"the correct answer is {str(n % 2 == 0).lower()}",
            "answer": str(n % 2 == 0).lower(),
        }
        for n in range(NUM_QUESTIONS)
    ]
    (folder / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in numbers))
    (folder / "boolq.json").write_text(json.dumps(answers))
    write_pairs(folder / "pairs.jsonl", NUM_QUESTIONS)
    return folder


def options(files: Path, output: Path, *more: object) -> list[object]:
    """Words of an evaluation of base and adapter in three tasks."""
    data = {"gsm8k": "gsm8k.jsonl", "boolq": "boolq.json", "forgetting": "pairs.jsonl"}
    given = [word for task, name in data.items() for word in ("--data", f"{task}={files / name}")]
    words = ["--task", ",".join(data), *given, "--adapter", files / "adapter-a"]
    return [*words, "--precision", "fp32", "--max-new-tokens", 12, "--output", output, *more]


@pytest.fixture(scope="module")
def evaluated(files, tmp_path_factory):
    """The folder of an evaluation on one rank, and what it printed."""
    output = tmp_path_factory.mktemp("evaluated") / "out"
    merged = ("--merged", files / "merged")
    result = forked.diablo_ds("evaluate", *options(files, output, *merged))
    return output, result.stdout


def read(output: Path) -> dict[tuple[str, ...], dict[str, object]]:
    """The rows of predictions by their keys; numbers are rounded."""
    rows = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    for row in rows:
        if "nats" in row:
            row["nats"] = round(row["nats"], 3)
        if "log_likelihoods" in row:
            row["log_likelihoods"] = [round(value, 3) for value in row["log_likelihoods"]]
    names = ("model", "task", "kind", "id", "sample")
    found = {tuple(str(row[name]) for name in names): row for row in rows}
    assert len(found) == len(rows), "a question was answered twice"
    return found


def results_of(output: Path) -> dict[str, object]:
    """The file of results."""
    return json.loads((output / "results.json").read_text())


def test_an_adapter_answers_as_the_merged_model_does(evaluated):
    rows = read(evaluated[0])
    kinds = {"gsm8k": 1, "boolq": 2, "forgetting": 1}
    assert len(rows) == 3 * NUM_QUESTIONS * sum(kinds.values())
    for key, row in rows.items():
        if key[0] == "adapter-a":
            assert rows["merged", *key[1:]] == row | {"model": "merged"}
    assert any(rows["base", *k[1:]]["output"] != r["output"] for k, r in rows.items())


def test_results_have_every_score_with_its_interval(evaluated):
    results = results_of(evaluated[0])
    scores = {(r["model"], r["task"], r["metric"]): r for r in results["results"]}
    metrics = {
        "gsm8k": ("accuracy", "last_number"),
        "boolq": ("generation", "choice", "choice_norm"),
        "forgetting": ("loss", "perplexity", "rise"),
    }
    expected = {
        (m, t, k) for m in ("base", "adapter-a", "merged") for t in metrics for k in metrics[t]
    }
    assert scores.keys() == expected - {("base", "forgetting", "rise")}
    for score in scores.values():
        low, high = score["interval"]
        assert low <= score["score"] <= high
        assert score["n"] == NUM_QUESTIONS
    pairs = {tuple(c["models"]) for c in results["comparisons"]}
    assert pairs == {("base", "adapter-a"), ("base", "merged"), ("adapter-a", "merged")}
    assert {c["p"] for c in results["comparisons"] if c["models"][0] == "adapter-a"} == {1.0}
    rise = scores["adapter-a", "forgetting", "rise"]["score"]
    losses = [scores[m, "forgetting", "loss"]["score"] for m in ("base", "adapter-a")]
    assert rise == pytest.approx(losses[1] - losses[0], abs=1e-6)
    assert set(results) >= {"settings", "versions", "data", "tasks", "truncated", "run"}
    assert results["data"]["gsm8k"]["rows"] == NUM_QUESTIONS


def test_the_table_fits_a_terminal_and_the_report_has_a_chart(evaluated):
    output, shown = evaluated
    assert max(map(len, shown.splitlines()[:40])) <= 80
    assert "boolq, choice (n = 6)" in shown
    assert "![Scores with their intervals](scores.png)" in (output / "report.md").read_text()
    assert (output / "scores.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(output / "tensorboard" / "adapter-a")).Reload()
    assert "2 scores/gsm8k/accuracy" in events.Tags()["scalars"]


@pytest.mark.parametrize("placement", ["copies", "sharded"])
def test_two_ranks_answer_as_one_does(files, evaluated, tmp_path, placement):
    words = options(files, tmp_path / "out", "--placement", placement)
    forked.Command("evaluate", *words, num_ranks=2, port=free_port()).result()
    rows = read(tmp_path / "out")
    alone = {key: row for key, row in read(evaluated[0]).items() if key[0] != "merged"}
    assert rows == alone


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_evaluation_continues_at_the_next_question(files, evaluated, tmp_path, number):
    output = tmp_path / "out"
    predictions = output / "predictions.jsonl"
    command = forked.Command("evaluate", *options(files, output))
    deadline = time.monotonic() + WAIT_S
    while not (predictions.exists() and predictions.read_bytes().count(b"\n") >= 5):
        assert time.monotonic() < deadline
        assert not command.has_ended()
        time.sleep(0.01)
    in_use = f"{output}: in use by process {command.processes[0].pid}"
    assert in_use in describe_status(output) or (output / "results.json").exists()
    for _ in range(2):  # DeepSpeed's launcher sends a second one
        with contextlib.suppress(ProcessLookupError):
            os.kill(command.processes[0].pid, number)
    stopped = command.result(check=False)
    if number != signal.SIGKILL and not (output / "results.json").exists():
        assert "Stopped; all answers so far are kept" in stopped.stdout
        assert "Traceback" not in stopped.stderr
        assert "Aborted" not in stopped.stderr
    first = predictions.read_text().splitlines(keepends=True)[:5]
    predictions.write_text("".join(first) + first[0][:40])  # a row that a crash cut off
    marked = json.loads(first[0]) | {"mark": "kept"}
    predictions.write_text(json.dumps(marked) + "\n" + "".join(first[1:]) + first[0][:40])
    (output / "results.json").unlink(missing_ok=True)  # where it came to its end meanwhile
    assert_continued_by(describe_status(output), options(files, output))
    assert f"{output}: not done, " in describe_evaluation(output)
    result = forked.diablo_ds("evaluate", *options(files, output))
    assert "Continuing: 5 answers are there" in result.stderr
    assert f"{output}: done\n" in describe_status(output)
    rows = read(output)
    assert [row.pop("mark") for row in rows.values() if "mark" in row] == ["kept"]
    assert rows == {key: row for key, row in read(evaluated[0]).items() if key[0] != "merged"}


def assert_continued_by(text: str, words: list[object]) -> None:
    """Assert that the last line of a description is a command with the same options."""
    *before, last = text.splitlines()
    assert any("answers are to come" in line for line in before)
    assert last.startswith("Continue")
    program, name, *shown = shlex.split(last.partition(": ")[2])
    assert (program, name) == ("diablo-ds", "evaluate")

    def parsed(given: list[str]) -> EvaluateOptions:
        return from_options(EvaluateOptions, evaluate.make_context(name, given).params)

    assert parsed(shown) == parsed([str(word) for word in words])


def test_the_folder_of_an_evaluation_tells_what_is_in_it(evaluated):
    output, shown = evaluated
    text = describe_evaluation(output)
    table = shown.partition("\nShares are")[0].splitlines()
    assert len(table) > 20
    assert [line for line in table if line not in text.splitlines()] == []
    assert f"Evaluation {output}: done\n  model        base\n    gsm8k: 6 of 6 answers\n" in text
    assert "    boolq: 12 of 12 answers" in text
    assert "gsm8k, version 1, boolq" in text.replace("tasks        ", "")
    assert text.splitlines()[-1].startswith("More tasks, models or a higher limit: diablo-ds eval")
    status = describe_status(output)
    assert status.splitlines()[0] == f"Evaluation {output}: done"
    assert status.count("6 of 6 answers") == 6


def test_limits_of_tasks_can_be_raised_and_lowered_and_charts_need_matplotlib(
    files, evaluated, tmp_path
):
    output = tmp_path / "out"
    whole = {key: row for key, row in read(evaluated[0]).items() if key[0] != "merged"}

    def asked(*limits: object) -> tuple[dict[str, int], str]:
        words = [word for limit in limits for word in ("--limit", limit)]
        variables = {forked.HIDDEN_VARIABLE: "matplotlib"}
        command = forked.Command("evaluate", *options(files, output, *words), variables=variables)
        result = command.result()
        assert "Traceback" not in result.stderr
        return {row["task"]: row["n"] for row in results_of(output)["results"]}, result.stdout

    output.mkdir()
    numbers, shown = asked(2, "boolq=4")
    assert numbers == {"gsm8k": 2, "boolq": 4, "forgetting": 2}
    rows = read(output)
    assert len(rows) == 2 * (2 + 2 * 4 + 2)
    assert rows == {key: whole[key] for key in rows}
    assert "matplotlib" in shown
    assert not list(output.glob("*.png"))
    report = (output / "report.md").read_text()
    assert "scores.png" not in report
    assert re.search(r"^boolq choice base +[0-9.]+ #+$", report, re.M)
    (output / "scores.png").write_bytes(b"of a start with matplotlib")
    numbers, _ = asked("5,gsm8k=1", "boolq=0")
    assert numbers == {"gsm8k": 1, "boolq": 6, "forgetting": 5}
    assert len(read(output)) == 2 * (2 + 2 * 6 + 5)
    assert not (output / "scores.png").exists()
    assert describe_status(output).splitlines()[0] == f"Evaluation {output}: done"


def test_other_settings_do_not_continue_an_evaluation(files, evaluated):
    output, _ = evaluated
    before = (output / "predictions.jsonl").read_bytes()
    words = options(files, output, "--max-new-tokens", 13)
    result = forked.diablo_ds("evaluate", *words, check=False)
    assert_user_error(result, "max_new_tokens=13 of gsm8k instead of 12", "--output")
    assert (output / "predictions.jsonl").read_bytes() == before


def test_another_rule_of_the_task_jsonl_does_not_continue_an_evaluation(files, tmp_path):
    (tmp_path / "own.jsonl").write_text('{"prompt": "1+1=", "reference": "2"}\n')
    words = ["--task", "jsonl", "--data", f"jsonl={tmp_path / 'own.jsonl'}", "--base"]
    words += [files / "tiny", "--max-new-tokens", 2, "--output", tmp_path / "out"]
    forked.diablo_ds("evaluate", *words)
    result = forked.diablo_ds("evaluate", *words, "--match", "contains", check=False)
    assert_user_error(result, "match=contains of jsonl instead of exact", "--output")
