from __future__ import annotations

import pytest

from diablo_ds.errors import UserError
from diablo_ds.evaluation.question import Question
from diablo_ds.evaluation.tasks import find_task
from tests.unit.evaluation.rows import write_rows

TALK = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "?"}]


def _reference(match, *references):
    return {"match": match, "references": list(references)}


def test_prompts_and_references_in_any_form_of_training_data(tmp_path):
    rows = write_rows(
        tmp_path / "a.jsonl",
        {"prompt": "2+2=", "reference": 4, "id": "four"},
        {"prompt": "2+2=", "completion": " 4 "},
        {"instruction": "Add.", "input": "2 2", "output": "4", "match": "contains"},
        {"question": "2+2?", "answer": "4"},
        {"messages": TALK, "references": ["4", "four"]},
        {"prompt": TALK, "reference": r"\b4\b", "match": "regex"},
    )
    assert list(find_task("jsonl").read(rows)) == [
        Question("four", "2+2=", reference=_reference("exact", "4")),
        Question("2", "2+2=", reference=_reference("exact", "4")),
        Question("3", "Add.", "2 2", reference=_reference("contains", "4")),
        Question("4", "2+2?", reference=_reference("exact", "4")),
        Question("5", messages=tuple(TALK), reference=_reference("exact", "4", "four")),
        Question("6", messages=tuple(TALK), reference=_reference("regex", r"\b4\b")),
    ]
    rules = [q.reference["match"] for q in find_task("jsonl", "contains").read(rows)]
    assert rules == ["contains"] * 5 + ["regex"]


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ({"prompt": "a"}, "must have one of the fields reference"),
        ({"reference": "a"}, "must have one of the fields prompt"),
        ({"prompt": "", "reference": "a"}, "field 'prompt' must not be empty"),
        ({"prompt": "a", "reference": ""}, "not empty"),
        ({"prompt": "a", "reference": []}, "not empty"),
        ({"prompt": "a", "reference": ["b", None]}, "a list of these"),
        ({"prompt": "a", "reference": True}, "must be text, a number"),
        ({"prompt": "a", "reference": "b", "match": "near"}, "field 'match' must be one of"),
        ({"prompt": "a", "reference": "(", "match": "regex"}, "must be a regular expression"),
        ({"prompt": "a", "reference": "b", "id": 1.5}, "field 'id' must be"),
        ({"prompt": [], "reference": "b"}, "must be text or a list of messages"),
        ({"messages": [{"role": "assistant"}], "reference": "b"}, "must not end with"),
        ({"messages": TALK, "tools": [{}], "reference": "b"}, "tasks cannot offer tools"),
    ],
)
def test_a_row_without_prompt_reference_or_rule_is_named(row, rule, tmp_path):
    path = write_rows(tmp_path / "a.jsonl", {"prompt": "a", "reference": "b"}, row)
    with pytest.raises(UserError, match=rf"a\.jsonl, line 2: .*{rule}"):
        list(find_task("jsonl").read(path))


def test_a_table_with_other_fields_is_read_too(tmp_path):
    (tmp_path / "a.csv").write_text("Prompt,Reference\n2+2=,4\n")
    (question,) = find_task("jsonl").read(tmp_path / "a.csv")
    assert (question.instruction, question.reference) == ("2+2=", _reference("exact", "4"))


@pytest.mark.parametrize(
    ("match", "references", "answer", "extracted", "accuracy"),
    [
        ("exact", ["4"], " 4\n", "4", 1),
        ("exact", ["4"], "It is 4", "It is 4", 0),
        ("exact", ["four", "4"], "4", "4", 1),
        ("exact", ["Four"], "four", "four", 0),
        ("contains", ["five", "4"], "It is 4.", "4", 1),
        ("contains", ["4"], "four", None, 0),
        ("regex", [r"(?i)\bfour\b"], "It is Four.", "Four", 1),
        ("regex", [r"^4$"], "It is 4", None, 0),
    ],
)
def test_answers_are_scored_by_the_rule(match, references, answer, extracted, accuracy):
    question = Question("1", "?", reference=_reference(match, *references))
    verdict = find_task("jsonl").judge(question, answer)
    assert verdict.extracted == extracted
    assert verdict.scores == {"accuracy": accuracy}
