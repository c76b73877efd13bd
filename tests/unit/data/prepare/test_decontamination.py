from __future__ import annotations

import json

import pytest

from diablo_ds.data.prepare.decontamination import (
    EXACT,
    OVERLAP,
    ExcludedQuestions,
    load_questions,
    normalize,
)
from diablo_ds.errors import UserError

LONG = "A train leaves at noon and runs for three hours at 60 miles per hour; how far does it go?"


def test_spelling_does_not_hide_a_test_question():
    tests = ExcludedQuestions(["How many apples,\nin all?"])
    for same in (
        "how many apples in all",
        "  HOW many\tapples -- in all?!",
        "\uff28ow many apples in all",
    ):
        assert tests.match(same) == EXACT
    assert tests.match("How many pears in all?") == ""
    assert tests.match("How many apples in all and more?") == ""  # too short to overlap


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_not():
    tests = ExcludedQuestions([LONG])
    words = LONG.split()
    assert tests.match("Think. " + " ".join(words[2:15]) + " Answer!") == OVERLAP
    assert tests.match("Think. " + " ".join(words[2:14]) + " Answer!") == ""


def test_the_frame_that_all_rows_of_a_corpus_share_is_no_overlap():
    frame = (
        "Please choose the correct answer to fill in the blank to complete the given sentence: {}"
        "\n\nAnswer format: option1/option2"
    )
    tests = ExcludedQuestions([frame.format("The cat _ sat.")])
    assert tests.match(frame.format("A dog _ ran.")) == ""
    assert tests.match("the cat _ sat") == EXACT
    assert normalize(frame.format("A b")) == ["a", "b"]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Q one", "answer": "A"},
        {"query": "Q one", "response": "A"},
        {"problem": "Q one"},
        {"instruction": "Q one", "input": "", "output": "A"},
        {"instruction": "Q", "input": "one"},
        {"instructions": "Q one", "inputs": ""},
        {"text": "Q one", "code": "c"},
        {"goal": "Q one", "target": "t"},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "Q one"}]},
        {"question": "Q with x", "original_question": "Q one"},
    ],
)
def test_questions_are_found_in_test_files_of_every_form(tmp_path, row):
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(row))
    assert ExcludedQuestions(load_questions([path])).match("q one") == EXACT


def test_a_test_file_that_cannot_be_read_in_full_is_refused(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text('{"question": "Q"}\n{"broken')
    with pytest.raises(UserError, match=r"must be readable; got .*test\.jsonl, line 2"):
        list(load_questions([path]))
    path.write_text('{"label": "Q"}')
    with pytest.raises(UserError, match=r"must hold a question .*line 1: label"):
        list(load_questions([path]))
