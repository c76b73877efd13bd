"""GSM8K: grade school word problems, judged by the final number."""

from __future__ import annotations

from diablo_ds.evaluation.question import Question, Verdict
from diablo_ds.evaluation.task import Task
from diablo_ds.evaluation.tasks._numbers import last_number
from diablo_ds.evaluation.tasks._word_problems import final_number, is_equal, read_word_problems


def _judge(question: Question, answer: str) -> Verdict:
    """Compare the number that the published code takes, and the last one of the answer alone."""
    found = final_number(answer)
    return Verdict(
        found.text if found else None,
        {
            "accuracy": float(is_equal(found, question)),
            "last_number": float(is_equal(last_number(answer), question)),
        },
    )


TASK = Task(
    name="gsm8k",
    version=1,
    kind="generate",
    template="gsm8k",
    trained_templates=("chat", "alpaca"),
    metrics=("accuracy", "last_number"),
    read=read_word_problems,
    judge=_judge,
    max_new_tokens=512,
)
