"""Task scores while a model is trained: they are the model's own, and leave no trace in the run."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diablo_ds.ranks.free_port import free_port
from tests import forked
from tests.cluster.watching import assert_same_run
from tests.e2e.commands import ZERO3, assert_user_error, losses
from tests.tiny import save_model
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e
STEPS = [0, 5, 8]
"""Every fifth of 8 steps, the start and the end; every fourth is saved."""
SCORES = (
    "task/jsonl/accuracy",
    "task/boolq/generation",
    "task/boolq/choice",
    "task/boolq/choice_norm",
    "task/loss:pairs/loss",
)


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("questions")
    own = [
        {"prompt": f"{n}+{n}=", "reference": c, "match": "contains"}
        for n, c in enumerate("aeiosty")
    ]
    boolq = [
        {
            "instruction": f"Is {n} even? Answer format: true/false",
            "input": "",
            "output": f"the correct answer is {answer}",
            "answer": answer,
        }
        for n, answer in enumerate(["true", "false"] * 3)
    ]
    files = {"jsonl": folder / "own.jsonl", "boolq": folder / "boolq.jsonl"}
    for path, rows in zip(files.values(), (own, boolq), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


@pytest.fixture(scope="module")
def long_model(tmp_path_factory) -> Path:
    """A model with positions for answers."""
    folder = tmp_path_factory.mktemp("long") / "tiny"
    return save_model(folder, max_position_embeddings=1024)


@pytest.fixture
def options(options, long_model) -> list[str]:
    return [*options, "--model", str(long_model), "--recompute", "--ds_config", str(ZERO3)]


def _with_tasks(options: list[str], questions: Mapping[str, Path], data: Path) -> list[str]:
    words = ["--eval-tasks", "jsonl,boolq", "--eval-tasks", "loss:pairs", "--eval-task-every", "5"]
    paths = {**questions, "loss:pairs": data}
    given = [
        word for item in paths.items() for word in ("--eval-task-data", "=".join(map(str, item)))
    ]
    return [*options, *words, *given, "--eval-task-limit", "5", "--sample-prompts", "2"]


def _scores(folder: Path) -> dict[str, dict[int, float]]:
    return {name: losses(folder, name) for name in SCORES}


def test_a_run_with_tasks_equals_one_without_also_when_stopped(options, questions, data, tmp_path):
    plain, scored, stopped = (tmp_path / name for name in ("plain", "scored", "stopped"))
    forked.ranks(*options, "--output", plain)
    options = _with_tasks(options, questions, data)
    result = forked.ranks(*options, "--output", scored)
    assert_same_run(scored, plain)
    scores = _scores(scored)
    assert {name: list(found) for name, found in scores.items()} == dict.fromkeys(SCORES, STEPS)
    assert "step 5/8  boolq: generation" in result.stdout + result.stderr
    events = EventAccumulator(str(scored / "tensorboard")).Reload()
    tag = "task/boolq/choice"
    shown = events.Scalars("2 scores/boolq/choice")
    assert {e.step: e.value for e in shown} == pytest.approx(scores[tag])

    # Told to stop while it answers after step 5, of which nothing was saved.
    run = forked.Command("train", *options, "--output", stopped, num_ranks=2, port=free_port())
    metrics = stopped / "metrics.jsonl"
    wait_until(lambda: run.has_ended() or (metrics.exists() and 5 in losses(stopped)), "step 5")
    os.kill(run.processes[-1].pid, signal.SIGUSR1)
    result = run.result(check=False)
    assert "Stopped after step 5 of 8, which is saved" in result.stdout + result.stderr
    assert 5 not in losses(stopped, SCORES[-1])
    forked.ranks(*options, "--output", stopped)
    assert_same_run(stopped, scored)
    assert _scores(stopped) == scores

    # They are the scores of the saved adapter, whose deltas are merged there.
    words = ["--task", "jsonl,boolq", "--limit", "5", "--skip-base", "--precision", "fp32"]
    paths = [w for item in questions.items() for w in ("--data", "=".join(map(str, item)))]
    words += ["--adapter", str(scored), *paths]
    forked.diablo_ds("evaluate", *words, "--output", tmp_path / "evaluated")
    results = json.loads((tmp_path / "evaluated" / "results.json").read_text())["results"]
    found = {f"task/{r['task']}/{r['metric']}": r["score"] for r in results}
    assert found == {name: scores[name][8] for name in SCORES[:-1]}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--eval-tasks gsm", "did you mean 'gsm8k'?"),
        ("--eval-tasks gsm8k", "give --eval-task-data gsm8k=PATH"),
        ("--eval-tasks gsm8k --eval-task-data gsm8k=nowhere", "a path that exists"),
        ("--eval-tasks gsm8k --eval-task-data boolq=x", "must be of one of the tasks gsm8k"),
        ("--eval-tasks mbpp --eval-task-data mbpp=setup.py", "add --allow-code-execution"),
        (
            "--eval-tasks jsonl --eval-task-data jsonl=setup.py --weak-sandbox",
            "weak_sandbox needs a task that runs programs",
        ),
        ("--eval-tasks forgetting --eval-task-data forgetting=setup.py", "--eval-tasks loss:other"),
        ("--eval-task-every 3", "no effect without eval_tasks"),
    ],
)
def test_wrong_tasks_are_refused_before_the_model_is_read(words, part, tmp_path):
    # No such model: whatever is said of the tasks is said before anybody looks for it.
    command = ["train", "--model", tmp_path / "none", "--data", "setup.py", *words.split()]
    assert_user_error(forked.diablo_ds(*command, "--output", tmp_path / "run", check=False), part)
    assert not (tmp_path / "run").exists()
