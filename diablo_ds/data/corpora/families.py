"""Families of corpora: the kinds of rows they have, known by their fields, and what these mean."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

from diablo_ds.data.corpora.chats import read_conversation
from diablo_ds.data.corpora.fields import Fields, RowError, text
from diablo_ds.data.text.conversations import Conversation


class Exchange(NamedTuple):
    """What a row means: an instruction, perhaps with context, and the response to learn."""

    instruction: str
    context: str
    response: str


class RowKind(NamedTuple):
    """One kind of rows, recognised by its fields."""

    name: str
    fields: tuple[str, ...]
    """Fields that distinguish it from the other kinds of its family."""
    template: str
    """Template used if none is chosen."""
    read: Callable[[Fields], Exchange | Conversation]
    """Reads a row; raises RowError."""
    licence: str
    """What is known about the public corpus's licence, for the manifest."""

    def fits(self, row: Fields) -> bool:
        """Return whether a row has the fields of this kind."""
        return all(field in row for field in self.fields)


def _optional(row: Fields, field: str) -> str:
    """Return a text field that may be absent, null or empty; "" then."""
    if row.get(field) is None:
        return ""
    value = text(row, field, may_be_empty=True)
    return value if value.strip() else ""


def _instruction(row: Fields) -> Exchange:
    return Exchange(text(row, "instruction"), _optional(row, "input"), text(row, "output"))


_ANSWER_OPENING = "the correct answer is "


def _commonsense(row: Fields) -> Exchange:
    exchange = _instruction(row)
    answer = row.get("answer")
    if answer is not None and exchange.response.strip() != f"{_ANSWER_OPENING}{answer}":
        raise RowError(f"field 'output' must be {_ANSWER_OPENING + str(answer)!r}")
    return exchange


def _gsm8k(row: Fields) -> Exchange:
    answer = text(row, "answer")
    if "#### " not in answer:
        raise RowError("field 'answer' must hold the final number after '#### '")
    response = answer.replace("#### ", "The final answer is: ")
    return Exchange(text(row, "question"), "", response)


def _query(answer_field: str) -> Callable[[Fields], Exchange]:
    return lambda row: Exchange(text(row, "query"), "", text(row, answer_field))


def _math(row: Fields) -> Exchange:
    return Exchange(text(row, "problem"), "", text(row, "solution"))


def _mbpp(row: Fields) -> Exchange:
    tests = row.get("test_list")
    if not isinstance(tests, list) or not all(isinstance(t, str) for t in tests) or not tests:
        raise RowError("field 'test_list' must be a list of texts, at least one")
    instruction = "\n".join([text(row, "text"), "Your code should pass these tests:", "", *tests])
    return Exchange(_unix_lines(instruction), "", _unix_lines(text(row, "code")))


def _unix_lines(value: str) -> str:
    return value.replace("\r\n", "\n")


_REFUSALS = (
    "I can't help with that, because it could hurt someone. If there is a safe way to reach what "
    "you need, I'm glad to help you find it.",
    "I won't assist with this request: it asks for something harmful. I can talk about the topic "
    "in a way that keeps people safe, if that is of use.",
    "Sorry, but I can't do that. Acting on it could cause real harm, and I'd rather help you with "
    "something that doesn't.",
    "That is not something I can help with. If you are dealing with a difficult situation, I can "
    "point you to people or resources that may help.",
)


def _harmful_goal(row: Fields) -> Exchange:
    """Answer a harmful goal with a refusal of our own.

    AdvBench's target is the opening of a compliant answer, so it is not used.
    """
    goal = text(row, "goal")
    text(row, "target")
    choice = hashlib.sha256(goal.encode()).digest()[0] % len(_REFUSALS)
    return Exchange(goal, "", _REFUSALS[choice])


def _pair(answer_field: str) -> Callable[[Fields], Exchange]:
    return lambda row: Exchange(text(row, "prompt", may_be_empty=True), "", text(row, answer_field))


def _text(row: Fields) -> Exchange:
    return Exchange("", "", text(row, "text"))


_UNKNOWN = "not known; see the corpus's own terms"
_LLM_ADAPTERS = "LLM-Adapters: Apache-2.0, data ODC-By 1.0; each task keeps its own licence"
_CODE_ALPACA = "CodeAlpaca: CC BY-NC 4.0; others with these fields have their own"
_ALPACA = "Alpaca and safety-tuned-llamas: CC BY-NC 4.0; others with these fields have their own"

FAMILIES: dict[str, tuple[RowKind, ...]] = {
    "commonsense": (
        RowKind("llm-adapters", ("instruction", "output"), "alpaca", _commonsense, _LLM_ADAPTERS),
    ),
    "math": (
        RowKind("gsm8k", ("question", "answer"), "gsm8k", _gsm8k, "GSM8K: MIT"),
        RowKind(
            "metamathqa", ("query", "response"), "alpaca", _query("response"), "MetaMathQA: MIT"
        ),
        RowKind("math", ("problem", "solution"), "alpaca", _math, "MATH: MIT"),
        RowKind("math10k", ("instruction", "output"), "alpaca", _instruction, _LLM_ADAPTERS),
    ),
    "code": (
        RowKind("mbpp", ("text", "code", "test_list"), "alpaca", _mbpp, "MBPP: CC BY 4.0"),
        RowKind("codefeedback", ("query", "answer"), "alpaca", _query("answer"), _UNKNOWN),
        RowKind("codealpaca", ("instruction", "output"), "alpaca", _instruction, _CODE_ALPACA),
        RowKind("messages", ("messages",), "chat", read_conversation, _UNKNOWN),
    ),
    "safety": (
        RowKind("alpaca", ("instruction", "output"), "alpaca", _instruction, _ALPACA),
        RowKind("advbench", ("goal", "target"), "alpaca", _harmful_goal, "AdvBench: MIT"),
        RowKind("refusals", ("prompt", "refusal"), "alpaca", _pair("refusal"), _UNKNOWN),
        RowKind("responses", ("prompt", "response"), "alpaca", _pair("response"), _UNKNOWN),
    ),
    "jsonl": (
        RowKind("pairs", ("prompt", "completion"), "plain", _pair("completion"), _UNKNOWN),
        RowKind("messages", ("messages",), "chat", read_conversation, _UNKNOWN),
        RowKind("text", ("text",), "plain", _text, _UNKNOWN),
    ),
}


def find_kind(family: str, row: Fields) -> RowKind:
    """Return the kind of a row, by its fields.

    Raises:
        RowError: if its fields fit no kind of the family.
    """
    for kind in FAMILIES[family]:
        if kind.fits(row):
            return kind
    others = [name for name, kinds in FAMILIES.items() if any(kind.fits(row) for kind in kinds)]
    hint = f"; it would fit {' or '.join(others)}" if others else ""
    known = "; ".join(", ".join(kind.fields) for kind in FAMILIES[family])
    raise RowError(
        f"a row of {family} must have the fields {known}; it has {', '.join(row)}"[:300] + hint
    )
