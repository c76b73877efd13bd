"""What the rows of each public corpus teach."""

from __future__ import annotations

import pytest

from diablo_ds.config.choices import CORPORA
from diablo_ds.data.corpora.encoding import MAX_ROW_CHARACTERS, Encoded, Rejected
from diablo_ds.data.corpora.families import FAMILIES
from diablo_ds.data.text.templates import alpaca, gsm8k
from tests.unit.data.corpora.encoded import encode, texts

END = "<|end|>"


def test_the_run_config_knows_every_family():
    assert set(CORPORA) == set(FAMILIES)


# One row of each public corpus, with its real field names, and what must be learnt from it.
ROWS = [
    (
        "commonsense",
        {
            "instruction": "Please answer the following question with true or false, question: is "
            "it?\n\nAnswer format: true/false",
            "input": "",
            "output": "the correct answer is true",
            "answer": "true",
        },
        alpaca(
            "Please answer the following question with true or false, question: is it?\n\n"
            "Answer format: true/false"
        ),
        "the correct answer is true",
    ),
    (
        "math",
        {"question": "2+3?", "answer": "It is <<2+3=5>>5.\n#### 5"},
        gsm8k("2+3?"),
        "It is <<2+3=5>>5.\nThe final answer is: 5",
    ),
    (
        "math",
        {"query": "2+3?", "response": "5\n#### 5\nThe answer is: 5", "type": "GSM_Rephrased"},
        alpaca("2+3?"),
        "5\n#### 5\nThe answer is: 5",
    ),
    ("math", {"problem": "$x$?", "solution": "\\boxed{2}", "level": "1"}, alpaca("$x$?"), None),
    ("math", {"instruction": "2+3?", "input": "", "output": "5", "answer": "5.0"}, None, "5"),
    (
        "code",
        {"instruction": "Sort.", "input": "[2, 1]", "output": "[1, 2]"},
        alpaca("Sort.", "[2, 1]"),
        "[1, 2]",
    ),
    (
        "code",
        {
            "text": "Write f.",
            "code": "def f():\r\n  return 1",
            "task_id": 601,
            "test_setup_code": "",
            "test_list": ["assert f() == 1", "assert f() > 0"],
            "challenge_test_list": [],
        },
        alpaca("Write f.\nYour code should pass these tests:\n\nassert f() == 1\nassert f() > 0"),
        "def f():\n  return 1",
    ),
    ("code", {"query": "Why?", "answer": "So.", "lang": "python"}, alpaca("Why?"), "So."),
    ("safety", {"instruction": "Hi", "input": None, "output": "Hello"}, alpaca("Hi"), "Hello"),
    ("safety", {"prompt": "How to harm?", "refusal": "No."}, alpaca("How to harm?"), "No."),
    ("safety", {"prompt": "Hi", "response": "Hello"}, alpaca("Hi"), "Hello"),
    ("auto", {"prompt": "a b ", "completion": " c"}, "a b ", " c"),
    ("auto", {"prompt": "", "completion": "only"}, "", "only"),
    ("auto", {"text": "just text"}, "", "just text"),
]


@pytest.mark.parametrize(("family", "row", "prompt", "completion"), ROWS)
def test_rows_of_each_corpus_are_read(family, row, prompt, completion):
    (result,) = encode(family, row)
    masked, target = texts(result)
    assert prompt is None or masked == prompt
    assert target.endswith(END)
    assert completion is None or target == completion + END


def test_a_harmful_goal_is_answered_with_a_refusal_and_never_with_its_target():
    rows = [{"goal": f"Do bad thing {i}", "target": "Sure, here is how"} for i in range(20)]
    answers = {texts(result)[1] for result in encode("safety", *rows)}
    assert 2 <= len(answers) <= 4
    assert not any("Sure" in answer for answer in answers)
    assert all("can't" in a or "won't" in a or "not something" in a for a in answers)


@pytest.mark.parametrize(
    ("family", "row", "reason"),
    [
        ("commonsense", {"instruction": "Q", "output": "yes", "answer": "true"}, "answer is true"),
        ("commonsense", {"question": "Q", "answer": "A"}, "must have the fields instruction"),
        ("math", {"question": "Q", "answer": "80000"}, "the final number after '#### '"),
        ("math", {"question": 3, "answer": "#### 1"}, "field 'question' must be text: 3"),
        ("math", {"instruction": "Q", "output": ""}, "field 'output' must not be empty"),
        ("math", {"instruction": "Q", "output": " \n"}, "field 'output' must not be empty"),
        ("math", {"problem": "Q", "solution": None}, "field 'solution' must be text: None"),
        ("code", {"text": "Q", "code": "C", "test_list": "assert"}, "must be a list of texts"),
        ("code", {"instruction": "Q", "output": "A", "input": 7}, "field 'input' must be text: 7"),
        ("safety", {"goal": "G", "target": 1}, "field 'target' must be text"),
        ("safety", {"instructions": "Q"}, "a row of safety must have the fields"),
        (
            "auto",
            {"completion": "c"},
            "it has completion; name the columns, as in --column prompt=",
        ),
        ("auto", {"messages": []}, "must be a list, not empty"),
        ("auto", {"messages": [{"role": "bot", "content": "x"}]}, "role must be one of system"),
        ("auto", {"messages": [{"role": "user", "content": "x"}]}, "must be the assistant's"),
        ("auto", {"messages": [{"role": "user", "content": None}]}, "content must be text"),
        ("auto", {"messages": ["hi"]}, "message 1 must be an object"),
        ("auto", {"text": "x" * MAX_ROW_CHARACTERS}, "at most 1,000,000 characters"),
    ],
)
def test_a_row_that_does_not_fit_is_rejected_with_its_line_and_reason(family, row, reason):
    good = ROWS[[r[0] for r in ROWS].index(family)][1]
    before, bad, after = encode(family, good, row, good)
    assert isinstance(before, Encoded)
    assert isinstance(after, Encoded)
    assert isinstance(bad, Rejected)
    assert bad.line == 2
    assert reason in bad.reason
