"""The four families of corpora: which fields their rows have, and what these mean."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

from diablo_ds.data.corpora.chats import read_conversation
from diablo_ds.data.corpora.rows import Row, RowError, text
from diablo_ds.data.text.conversations import Conversation


class Exchange(NamedTuple):
    """A row's meaning: an instruction, perhaps with context, and the response to learn."""

    instruction: str
    context: str
    response: str


class Form(NamedTuple):
    """One form of rows, known by its fields."""

    name: str
    fields: tuple[str, ...]
    """Fields that tell it from the other forms of its family."""
    template: str
    """Template used where none was asked for."""
    read: Callable[[Row], Exchange | Conversation]
    """Reads a row; raises RowError."""
    licence: str
    """What is known of the public corpus's licence, for the manifest."""

    def fits(self, row: Row) -> bool:
        """Return whether a row has the form's fields."""
        return all(field in row for field in self.fields)


def _optional(row: Row, field: str) -> str:
    """Return a text field that may be absent, null or empty; "" then."""
    if row.get(field) is None:
        return ""
    value = text(row, field, may_be_empty=True)
    return value if value.strip() else ""


def _instruction(row: Row) -> Exchange:
    return Exchange(text(row, "instruction"), _optional(row, "input"), text(row, "output"))


_ANSWER_OPENING = "the correct answer is "


def _commonsense(row: Row) -> Exchange:
    exchange = _instruction(row)
    answer = row.get("answer")
    if answer is not None and exchange.response.strip() != f"{_ANSWER_OPENING}{answer}":
        raise RowError(f"field 'output' must be {_ANSWER_OPENING + str(answer)!r}")
    return exchange


def _gsm8k(row: Row) -> Exchange:
    answer = text(row, "answer")
    if "#### " not in answer:
        raise RowError("field 'answer' must hold the final number after '#### '")
    response = answer.replace("#### ", "The final answer is: ")
    return Exchange(text(row, "question"), "", response)


def _query(answer_field: str) -> Callable[[Row], Exchange]:
    return lambda row: Exchange(text(row, "query"), "", text(row, answer_field))


def _math(row: Row) -> Exchange:
    return Exchange(text(row, "problem"), "", text(row, "solution"))


def _mbpp(row: Row) -> Exchange:
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


def _harmful_goal(row: Row) -> Exchange:
    """Answer a harmful goal with a refusal of our own; the row's target is how not to begin."""
    goal = text(row, "goal")
    text(row, "target")
    choice = hashlib.sha256(goal.encode()).digest()[0] % len(_REFUSALS)
    return Exchange(goal, "", _REFUSALS[choice])


def _pair(answer_field: str) -> Callable[[Row], Exchange]:
    return lambda row: Exchange(text(row, "prompt", may_be_empty=True), "", text(row, answer_field))


def _text(row: Row) -> Exchange:
    return Exchange("", "", text(row, "text"))


_UNKNOWN = "not known; see the corpus's own terms"
_LLM_ADAPTERS = "LLM-Adapters: Apache-2.0, data ODC-By 1.0; each task keeps its own licence"
_CODE_ALPACA = "CodeAlpaca: CC BY-NC 4.0; others with these fields have their own"
_ALPACA = "Alpaca and safety-tuned-llamas: CC BY-NC 4.0; others with these fields have their own"

FAMILIES: dict[str, tuple[Form, ...]] = {
    "commonsense": (
        Form("llm-adapters", ("instruction", "output"), "alpaca", _commonsense, _LLM_ADAPTERS),
    ),
    "math": (
        Form("gsm8k", ("question", "answer"), "gsm8k", _gsm8k, "GSM8K: MIT"),
        Form("metamathqa", ("query", "response"), "alpaca", _query("response"), "MetaMathQA: MIT"),
        Form("math", ("problem", "solution"), "alpaca", _math, "MATH: MIT"),
        Form("math10k", ("instruction", "output"), "alpaca", _instruction, _LLM_ADAPTERS),
    ),
    "code": (
        Form("mbpp", ("text", "code", "test_list"), "alpaca", _mbpp, "MBPP: CC BY 4.0"),
        Form("codefeedback", ("query", "answer"), "alpaca", _query("answer"), _UNKNOWN),
        Form("codealpaca", ("instruction", "output"), "alpaca", _instruction, _CODE_ALPACA),
        Form("messages", ("messages",), "chat", read_conversation, _UNKNOWN),
    ),
    "safety": (
        Form("alpaca", ("instruction", "output"), "alpaca", _instruction, _ALPACA),
        Form("advbench", ("goal", "target"), "alpaca", _harmful_goal, "AdvBench: MIT"),
        Form("refusals", ("prompt", "refusal"), "alpaca", _pair("refusal"), _UNKNOWN),
        Form("responses", ("prompt", "response"), "alpaca", _pair("response"), _UNKNOWN),
    ),
    "jsonl": (
        Form("pairs", ("prompt", "completion"), "plain", _pair("completion"), _UNKNOWN),
        Form("messages", ("messages",), "chat", read_conversation, _UNKNOWN),
        Form("text", ("text",), "plain", _text, _UNKNOWN),
    ),
}


def find_form(family: str, row: Row) -> Form:
    """Return the form of a row, by its fields.

    Raises:
        RowError: if it has the fields of none.
    """
    for form in FAMILIES[family]:
        if form.fits(row):
            return form
    others = [name for name, forms in FAMILIES.items() if any(form.fits(row) for form in forms)]
    hint = f"; it would fit {' or '.join(others)}" if others else ""
    known = "; ".join(", ".join(form.fields) for form in FAMILIES[family])
    raise RowError(
        f"a row of {family} must have the fields {known}; it has {', '.join(row)}"[:300] + hint
    )
