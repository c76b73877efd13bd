"""The examples of the study, in tokens, and how the answer of each is told from the others."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.quality.data import GSM8K, Parts, Row
from diablo_ds.config.run import RunConfig
from diablo_ds.data.corpora.families import ANSWER_OPENING
from diablo_ds.data.examples import Examples
from diablo_ds.data.loading import load_data
from diablo_ds.data.text.tokenization import Tokenizer
from diablo_ds.errors import UserError
from diablo_ds.evaluation.prompts import encode_choices
from diablo_ds.evaluation.question import Question

TEMPLATES = {"commonsense": "plain", GSM8K: "gsm8k"}
"""Commonsense questions name the format of the answer themselves; the frame of the template alpaca
would add 30 tokens to 70, the same in every example."""
_LABELS = re.compile(r"Answer format: (\S+)\s*\Z")


@dataclass(frozen=True)
class Choice:
    """How the answer of a held-out example is told from the others."""

    place: int
    """Position of the one token in which they differ."""
    candidates: tuple[int, ...]
    """The token that each choice has there."""
    correct: int
    """Index of the correct choice."""


@dataclass(frozen=True)
class StudyData:
    """The examples of one kind of data, within a length."""

    parts: Parts
    train: Examples
    heldout: Examples
    tasks: tuple[str, ...]
    """Of each held-out example."""
    choices: tuple[Choice | None, ...]
    """Of each held-out example; None where it has none."""


def data_settings(kind: str, parts: Parts) -> dict[str, Any]:
    """Return the fields of a run config that name the parts."""
    return {
        "data": (str(parts.train),),
        "heldout_data": (str(parts.heldout),),
        "corpus": "math" if kind == GSM8K else "commonsense",
        "template": TEMPLATES[kind],
    }


def load_study_data(
    kind: str, parts: Parts, max_length: int, tokenizer: Tokenizer, vocab_size: int
) -> StudyData:
    """Read the examples of the parts; those of more than ``max_length`` tokens are left out.

    Args:
        kind: one of `benchmarks.quality.spec.DATA`.
        parts: of `write_parts`.
        max_length: tokens.
        tokenizer: the model's.
        vocab_size: number of token ids that the model knows.

    Raises:
        UserError: if nothing is left, or the choices of a question do not differ in one token.
    """
    run_config = RunConfig(max_length=max_length, **data_settings(kind, parts))
    train, heldout = load_data(run_config, tokenizer, vocab_size)
    assert heldout is not None
    places = heldout.table.source_rows(heldout.indices)
    rows = [row for row in map(json.loads, parts.heldout.read_text().splitlines())]
    kept = [rows[int(place)] for place in places]
    tasks = tuple(row.get("task", GSM8K) for row in kept)
    if kind == GSM8K:
        return StudyData(parts, train, heldout, tasks, (None,) * len(kept))
    questions = [_with_choices(str(number), row) for number, row in enumerate(kept)]
    tokens = encode_choices(questions, TEMPLATES[kind], tokenizer)
    choices = tuple(
        _choice(question, own, heldout[number].labels)
        for number, (question, own) in enumerate(zip(questions, tokens, strict=True))
    )
    return StudyData(parts, train, heldout, tasks, choices)


def _with_choices(number: str, row: Row) -> Question:
    found = _LABELS.search(row["instruction"])
    labels = found[1].split("/") if found else []
    choices = tuple(f"{ANSWER_OPENING}{label}" for label in labels)
    if row["output"].strip() not in choices:
        raise UserError(
            "a commonsense row must list its labels after 'Answer format:' and answer with one; "
            f"got {row['instruction'][-60:]!r}, {row['output']!r:.60}"
        )
    return Question(
        number,
        row["instruction"],
        row["input"],
        choices=choices,
        correct=choices.index(row["output"].strip()),
    )


def _choice(question: Question, choices: Sequence[tuple[int, ...]], labels: Any) -> Choice:
    """Find the one token in which the choices differ, in an example that ends with the correct one.

    All else in the choices is equal, so that the likeliest choice is that of the likeliest token.
    """
    assert question.correct is not None
    answer = np.asarray(choices[question.correct])
    start = int(np.flatnonzero(np.asarray(labels) >= 0)[0])
    if not np.array_equal(np.asarray(labels)[start : start + len(answer)], answer):
        raise UserError(f"an example must end with its answer; got {question.choices}")
    if len({len(choice) for choice in choices}) == 1:
        columns = np.asarray(choices).T  # [tokens, choices]
        differing = [place for place, column in enumerate(columns) if len(set(column)) > 1]
        if len(differing) == 1 and len(set(columns[differing[0]])) == len(choices):
            tokens = tuple(int(token) for token in columns[differing[0]])
            return Choice(start + differing[0], tokens, question.correct)
    raise UserError(
        f"the choices of a question must differ in one token; got {', '.join(question.choices)}"
    )
