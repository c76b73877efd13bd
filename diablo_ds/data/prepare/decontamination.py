"""Decontamination: finding training rows that contain test questions."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diablo_ds.data.corpora.raw_rows import Unreadable, parse
from diablo_ds.data.corpora.reading import read_rows
from diablo_ds.errors import UserError

NGRAM_WORDS = 13
"""Consecutive words that two texts hardly share by chance; as in GPT-3 (arXiv 2005.14165)."""

EXACT, OVERLAP = "same question as a test", f"{NGRAM_WORDS} words in a row shared with a test"

_QUESTION_FIELDS = (
    "original_question",
    "question",
    "query",
    "problem",
    "instruction",
    "instructions",
    "text",
    "goal",
    "prompt",
)
_CONTEXT_FIELDS = ("input", "inputs")
# The frame that LLM-Adapters writes around each commonsense question, the same in every row.
_OPENING = re.compile(r"^Please [^:\n]{10,100}: ")
_CLOSING = re.compile(r"\s*Answer format: \S+\s*$")


class ExcludedQuestions:
    """The questions of tests, to be compared with those of training rows.

    Args:
        questions: text of each, without a template.
    """

    def __init__(self, questions: Iterable[str]) -> None:
        self._exact: set[str] = set()
        self._ngrams: set[str] = set()
        for question in questions:
            words = normalize(question)
            if words:
                self._exact.add(" ".join(words))
                self._ngrams.update(_ngrams(words))

    def __len__(self) -> int:
        """Return the number of different questions."""
        return len(self._exact)

    def match(self, question: str) -> str:
        """Return why a training row with this question is skipped; empty if it is kept."""
        words = normalize(question)
        if " ".join(words) in self._exact:
            return EXACT
        if not self._ngrams.isdisjoint(_ngrams(words)):
            return OVERLAP
        return ""


def normalize(question: str) -> list[str]:
    """Return the words of a question in lower case, without punctuation or a corpus's frame."""
    question = _CLOSING.sub("", _OPENING.sub("", question))
    if not question.isascii():
        question = unicodedata.normalize("NFKC", question)
    return re.findall(r"\w+", question.lower())


def _ngrams(words: Sequence[str]) -> Iterator[str]:
    for start in range(len(words) - NGRAM_WORDS + 1):
        yield " ".join(words[start : start + NGRAM_WORDS])


def load_questions(paths: Iterable[Path]) -> Iterator[str]:
    """Yield the questions in test files of any family.

    Raises:
        UserError: if a row cannot be read or has no question, as a test must be excluded in full.
    """
    for path in paths:
        for row in read_rows(path):
            fields = parse(row.value)
            if isinstance(fields, Unreadable):
                raise UserError(
                    f"each row of a file to exclude must be readable; got {path}, line {row.line}: "
                    f"{fields.reason}"
                )
            questions = list(_questions(fields))
            if not questions:
                raise UserError(
                    "each row of a file to exclude must hold a question in a field such as "
                    f"{', '.join(_QUESTION_FIELDS[:5])}; got {path}, line {row.line}: "
                    f"{', '.join(fields)}"
                )
            yield from questions


def _questions(fields: Mapping[str, Any]) -> Iterator[str]:
    context = next((fields[f] for f in _CONTEXT_FIELDS if isinstance(fields.get(f), str)), "")
    for field in _QUESTION_FIELDS:
        if isinstance(fields.get(field), str):
            yield f"{fields[field]}\n{context}"
    for message in fields.get("messages") or ():
        if isinstance(message, Mapping) and message.get("role") == "user":
            yield str(message.get("content"))
            return
