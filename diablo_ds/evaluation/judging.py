"""Verdicts that take more than a look at the answer: programs are run, and models are asked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

from diablo_ds.config.choices import CHAT, PLAIN
from diablo_ds.evaluation.inputs import TaskInput
from diablo_ds.evaluation.items import GENERATION, Key
from diablo_ds.evaluation.model_names import BASE
from diablo_ds.evaluation.models import Models
from diablo_ds.evaluation.predictions import Predictions, Row
from diablo_ds.evaluation.prompts import encode_questions
from diablo_ds.evaluation.question import Question
from diablo_ds.evaluation.sandbox.program import Limits, Outcome
from diablo_ds.evaluation.sandbox.running import check_programs
from diablo_ds.evaluation.sandbox.walls import Walls
from diablo_ds.evaluation.scores import PASSED
from diablo_ds.model.requests import Generation, GenerationRequest
from diablo_ds.ranks import distributed

JUDGEMENT = "judgement"
_PROGRAMS_AT_ONCE = 64
"""Run on rank 0 while the others wait, which they do for half an hour at most."""


def run_programs(
    given: TaskInput,
    keys: Sequence[Key],
    predictions: Predictions | None,
    walls: Walls,
    on_verdict: Callable[[], object],
) -> None:
    """Run the programs in answers of a task, and add the verdicts to their rows.

    Collective: every rank must call this.

    Args:
        given: the task.
        keys: of all its answers, the same on every rank.
        predictions: on rank 0, the rows.
        walls: around the programs.
        on_verdict: called on rank 0 for each program.
    """
    make = given.task.program
    assert make is not None
    questions = {question.id: question for question in given.questions}

    def run(rows: Sequence[Row]) -> None:
        assert predictions is not None
        programs = [make(questions[row["id"]], row["output"]) for row in rows]
        waiting = iter(zip(rows, programs, strict=True))

        def add(outcome: Outcome) -> None:
            row, program = next(waiting)
            verdict = {
                "extracted": program.source,
                "scores": {PASSED: float(outcome.passed)},
                "reason": outcome.reason,
                "program_output": outcome.output,
            }
            predictions.add(row | verdict)
            on_verdict()

        check_programs(programs, walls, Limits(), on_outcome=add)

    def run_part(part: Sequence[Key]) -> None:
        if predictions is not None:
            rows = [predictions.rows[key] for key in part]
            run([row for row in rows if "scores" not in row])

    for start in range(0, len(keys), _PROGRAMS_AT_ONCE):
        part = keys[start : start + _PROGRAMS_AT_ONCE]
        distributed.on_main_process(functools.partial(run_part, part))


def judgements_left(
    inputs: Sequence[TaskInput], models: Sequence[str], rows: Mapping[Key, Row]
) -> list[tuple[Key, Question]]:
    """Return what a judge is to be asked about answers that it has not judged yet.

    Args:
        inputs: the tasks.
        models: whose answers are judged.
        rows: all rows.
    """
    left = []
    for given in inputs:
        judge = given.task.judge_model
        if judge is None:
            continue
        for model in models:
            for question in given.questions:
                for sample in range(given.task.num_samples):
                    key = Key(model, given.name, GENERATION, question.id, sample)
                    of_judge = key._replace(kind=JUDGEMENT)
                    if of_judge not in rows and key in rows:
                        asked = judge.ask(question, rows[key]["output"])
                        left.append((of_judge, asked))
    return left


def judge_answers(
    judge: Models,
    asked: Sequence[tuple[Key, Question]],
    inputs: Sequence[TaskInput],
    on_row: Callable[[Row], object],
) -> None:
    """Have a model judge answers. Collective: every rank must call this.

    Args:
        judge: the model, under the name of a base.
        asked: what it is asked, the same on every rank.
        inputs: the tasks.
        on_row: called on every rank with each judgement as a row.
    """
    tasks = {given.name: given.task for given in inputs}
    with judge.use(BASE) as loaded:
        tokenizer = loaded.tokenizer
        template = PLAIN if tokenizer.chat is None else CHAT
        questions = [question for _, question in asked]
        if template == PLAIN:
            questions = [Question(q.id, str(q.messages[-1]["content"])) for q in questions]
        prompts = encode_questions(questions, template, tokenizer)
        requests = []
        for (key, _), prompt in zip(asked, prompts, strict=True):
            task = tasks[key.task].judge_model
            assert task is not None
            requests.append(GenerationRequest(prompt, task.max_new_tokens, loaded.end_ids))

        def deliver(index: int, result: Generation) -> None:
            key = asked[index][0]
            task = tasks[key.task].judge_model
            assert task is not None
            verdict = task.read(result.text)
            on_row(
                {
                    **key._asdict(),
                    "prompt": tokenizer.encoder.decode(list(prompts[index])),
                    "output": result.text,
                    "extracted": verdict.extracted,
                    "scores": dict(verdict.scores),
                    "finish": result.finish,
                    "is_truncated": False,
                }
            )

        loaded.engine.generate(requests, deliver)
