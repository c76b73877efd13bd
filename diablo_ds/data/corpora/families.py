"""Families of corpora: the kinds of rows they have, known by their fields, and what these mean."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import NamedTuple

from diablo_ds.config.choices import AUTO
from diablo_ds.data.corpora.chat_rows import (
    read_chat_pair,
    read_conversation,
    read_instruction_chat,
    read_sharegpt,
)
from diablo_ds.data.corpora.chats import VARIABLES
from diablo_ds.data.corpora.fields import Exchange, Fields, RowError, optional_text, text
from diablo_ds.data.text.conversations import Conversation

UNKNOWN_LICENCE = "not known; see the corpus's own terms"


class RowKind(NamedTuple):
    """One kind of rows, recognised by its fields."""

    name: str
    fields: tuple[str, ...]
    """Fields that distinguish it from the other kinds of its family."""
    template: str
    """Template used if none is chosen; empty where the rows can be meant in several ways."""
    read: Callable[[Fields], Exchange | Conversation]
    """Reads a row; raises RowError."""
    licence: str
    """The public corpus with these rows and its licence, for the manifest; that it is not known
    where the rows of many corpora have these fields."""
    others: tuple[str, ...] = ()
    """Fields that are read where a row has them."""
    accepts: Callable[[Fields], bool] = lambda row: True
    """Whether the values are those of this kind, where the fields do not tell."""
    question: str = ""
    """What must be chosen where `template` is empty."""

    def fits(self, row: Fields) -> bool:
        """Return whether a row has the fields of this kind."""
        return all(field in row for field in self.fields) and self.accepts(row)


def _instruction(row: Fields) -> Exchange:
    return Exchange(text(row, "instruction"), optional_text(row, "input"), text(row, "output"))


ANSWER_OPENING = "the correct answer is "
"""Begins each response of the commonsense tasks."""


def _commonsense(row: Fields) -> Exchange:
    exchange = _instruction(row)
    answer = row.get("answer")
    if answer is not None and exchange.response.strip() != f"{ANSWER_OPENING}{answer}":
        raise RowError(f"field 'output' must be {ANSWER_OPENING + str(answer)!r}")
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


def mbpp_instruction(row: Fields) -> str:
    """Return the instruction of a problem of MBPP: its text and the tests.

    Raises:
        RowError: if one is missing.
    """
    tests = row.get("test_list")
    if not isinstance(tests, list) or not all(isinstance(t, str) for t in tests) or not tests:
        raise RowError("field 'test_list' must be a list of texts, at least one")
    lines = [text(row, "text"), "Your code should pass these tests:", "", *tests]
    return _unix_lines("\n".join(lines))


def _mbpp(row: Fields) -> Exchange:
    return Exchange(mbpp_instruction(row), "", _unix_lines(text(row, "code")))


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


def _described(row: Fields) -> Exchange:
    return Exchange(text(row, "instruction"), optional_text(row, "context"), text(row, "response"))


def _question(row: Fields) -> Exchange:
    return Exchange(text(row, "question"), "", text(row, "answer"))


def _is_chat_pair(row: Fields) -> bool:
    return any(isinstance(row[field], list) for field in ("prompt", "completion"))


def _has_turns(row: Fields) -> bool:
    """Return whether a row has a system message or earlier turns, perhaps empty ones.

    Tables and most JSON files have the fields in all rows, so that all are rendered alike.
    """
    return "system" in row or "history" in row


_FINAL_NUMBER = re.compile(r"^#### ?[-$]?[\d.,/]+%?\s*\Z", re.MULTILINE)


def _has_final_number(row: Fields) -> bool:
    return isinstance(row["answer"], str) and bool(_FINAL_NUMBER.search(row["answer"]))


_UNKNOWN = UNKNOWN_LICENCE
_LLM_ADAPTERS = "LLM-Adapters: Apache-2.0, data ODC-By 1.0; each task keeps its own licence"

_CHAT = ("tools", "functions", VARIABLES)

TEXT = "text"
"""Name of the kind of rows that are text without a prompt."""
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
        RowKind("math10k", ("instruction", "output"), "alpaca", _instruction, _UNKNOWN),
    ),
    "code": (
        RowKind("mbpp", ("text", "code", "test_list"), "alpaca", _mbpp, "MBPP: CC BY 4.0"),
        RowKind("codefeedback", ("query", "answer"), "alpaca", _query("answer"), _UNKNOWN),
        RowKind("codealpaca", ("instruction", "output"), "alpaca", _instruction, _UNKNOWN),
        RowKind("messages", ("messages",), "chat", read_conversation, _UNKNOWN),
    ),
    "safety": (
        RowKind("alpaca", ("instruction", "output"), "alpaca", _instruction, _UNKNOWN),
        RowKind("advbench", ("goal", "target"), "alpaca", _harmful_goal, "AdvBench: MIT"),
        RowKind("refusals", ("prompt", "refusal"), "alpaca", _pair("refusal"), _UNKNOWN),
        RowKind("responses", ("prompt", "response"), "alpaca", _pair("response"), _UNKNOWN),
    ),
    AUTO: (
        RowKind(
            "sharegpt", ("conversations",), "chat", read_sharegpt, _UNKNOWN, ("system", *_CHAT)
        ),
        RowKind("messages", ("messages",), "chat", read_conversation, _UNKNOWN, _CHAT),
        RowKind(
            "chat-pairs",
            ("prompt", "completion"),
            "chat",
            read_chat_pair,
            _UNKNOWN,
            _CHAT,
            _is_chat_pair,
        ),
        RowKind("pairs", ("prompt", "completion"), "plain", _pair("completion"), _UNKNOWN),
        RowKind("mbpp", ("text", "code", "test_list"), "alpaca", _mbpp, _UNKNOWN),
        RowKind(
            "instruction-chats",
            ("instruction", "output"),
            "chat",
            read_instruction_chat,
            _UNKNOWN,
            ("input", "system", "history", *_CHAT),
            _has_turns,
        ),
        RowKind("alpaca", ("instruction", "output"), "alpaca", _instruction, _UNKNOWN, ("input",)),
        RowKind("dolly", ("instruction", "response"), "alpaca", _described, _UNKNOWN, ("context",)),
        RowKind("metamathqa", ("query", "response"), "alpaca", _query("response"), _UNKNOWN),
        RowKind("codefeedback", ("query", "answer"), "alpaca", _query("answer"), _UNKNOWN),
        RowKind("math", ("problem", "solution"), "alpaca", _math, _UNKNOWN),
        RowKind(
            "question-chats",
            ("question", "answer"),
            "chat",
            read_instruction_chat,
            _UNKNOWN,
            ("system", "history", *_CHAT),
            _has_turns,
        ),
        RowKind(
            "final-numbers",
            ("question", "answer"),
            "",
            _question,
            _UNKNOWN,
            (),
            _has_final_number,
            "a question whose answer ends with '#### ' and a number needs a choice: add --corpus "
            "math to learn it as DiaBlo's GSM8K, or --template alpaca, chat or plain as it is",
        ),
        RowKind("questions", ("question", "answer"), "alpaca", _question, _UNKNOWN),
        RowKind("refusals", ("prompt", "refusal"), "alpaca", _pair("refusal"), _UNKNOWN),
        RowKind("responses", ("prompt", "response"), "alpaca", _pair("response"), _UNKNOWN),
        RowKind(TEXT, ("text",), "plain", _text, _UNKNOWN),
    ),
}
"""By the name of the family; auto knows rows of every form that has one meaning."""


def find_kind(family: str, row: Fields) -> RowKind:
    """Return the kind of a row, by its fields.

    Raises:
        RowError: if its fields fit no kind of the family.
    """
    for kind in FAMILIES[family]:
        if kind.fits(row):
            return kind
    others = [name for name, kinds in FAMILIES.items() if any(kind.fits(row) for kind in kinds)]
    known = "; ".join(dict.fromkeys(", ".join(kind.fields) for kind in FAMILIES[family]))
    found = f"{', '.join(map(str, row))!s:.200}"
    if {"chosen", "rejected"} <= set(row):
        hint = "; preferences are not trained on: name the answer, --column completion=chosen"
    elif others:
        hint = (
            f"; add {' or '.join(f'--corpus {name}' for name in others)} (or prepare that corpus)"
        )
    else:
        hint = "; name the columns, as in --column prompt=Question --column completion=Reply"
    of_family = "" if family == AUTO else f" of {family}"
    raise RowError(f"a row{of_family} must have the fields {known}; it has {found}{hint}")


def known_fields() -> set[str]:
    """Return the names of all fields that some kind of row reads."""
    kinds = [kind for kinds in FAMILIES.values() for kind in kinds]
    return {field for kind in kinds for field in (*kind.fields, *kind.others)}
