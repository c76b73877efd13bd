"""GSM8K's test questions, answered by generation as `diablo-ds evaluate` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.quality.examples import StudyData
from diablo_ds.data.text.end_tokens import find_end_tokens
from diablo_ds.data.text.tokenization import Tokenizer
from diablo_ds.errors import UserError
from diablo_ds.evaluation.engine import Engine
from diablo_ds.evaluation.items import Item, ask, generation_items, verdict_of
from diablo_ds.evaluation.prompts import encode_questions
from diablo_ds.evaluation.task_data import read_first
from diablo_ds.evaluation.tasks import find_task
from diablo_ds.model.base import Base


def generated_answers(
    model: Any, tokenizer: Tokenizer, base: Base, study: StudyData, folder: Path, count: int
) -> list[int]:
    """Return for each of the first test questions whether the generated answer is correct.

    Args:
        model: a causal LM of transformers; left in the mode that it had.
        tokenizer: the model's.
        base: the model's base.
        study: the training data, whose last tokens end answers.
        folder: of test.jsonl.
        count: how many questions.

    Raises:
        UserError: if there are fewer.
    """
    task = find_task("gsm8k")
    path = next(iter(sorted(folder.glob("test.jsonl*"))), folder / "test.jsonl")
    questions = read_first(task, path, count)
    if len(questions) < count:
        raise UserError(f"num_questions must be at most {len(questions)}; got {count}")
    prompts = encode_questions(questions, task.template, tokenizer)
    learnt = study.train.table.last_targets()
    ends = find_end_tokens(tokenizer, learnt, base.folder, base.model_config)
    items = generation_items(
        "", task, questions, prompts, task.template, tokenizer, end_ids=frozenset(ends.all)
    )
    correct: dict[str, int] = {}

    def judge(item: Item, result: Any) -> None:
        verdict = verdict_of(task, item, result)
        assert verdict is not None
        correct[item.key.id] = int(verdict.scores["accuracy"])

    was_training = model.training
    model.eval()
    ask(Engine(model, tokenizer.encoder.decode), items, judge)
    model.train(was_training)
    return [correct[question.id] for question in questions]
