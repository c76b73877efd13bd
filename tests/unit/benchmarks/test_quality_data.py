"""The study's data: equal shares, parts that share no question, choices told by one token."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from benchmarks.quality.data import HELDOUT_SHARE, Sources, write_parts
from benchmarks.quality.examples import load_study_data
from diablo_ds.errors import UserError
from tests.quality_sources import commonsense_row, write_sources
from tests.tiny import tiny_tokenizer

COUNTS = {"piqa": 30, "winogrande": 50, "arc_easy": 20}


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return Sources(**write_sources(tmp_path_factory.mktemp("sources"), COUNTS))


@pytest.fixture(scope="module")
def parts(sources, tmp_path_factory):
    return write_parts(sources, "commonsense", tmp_path_factory.mktemp("parts"))


def test_tasks_have_equal_shares_of_any_beginning(parts):
    train = read(parts.train)
    share = COUNTS["arc_easy"] - int(HELDOUT_SHARE * COUNTS["arc_easy"])
    assert Counter(row["task"] for row in train) == dict.fromkeys(COUNTS, share)
    assert Counter(row["task"] for row in train[:12]) == dict.fromkeys(COUNTS, 4)
    assert Counter(row["task"] for row in read(parts.heldout)[:9]) == dict.fromkeys(COUNTS, 3)


def test_no_question_is_in_two_parts_or_in_a_test(parts, sources):
    train, heldout = read(parts.train), read(parts.heldout)
    asked = {row["instruction"] for row in train}
    assert not asked & {row["instruction"] for row in heldout}
    assert commonsense_row("piqa", 0, "solution1")["instruction"] not in asked  # in test.json
    assert len(asked) == len(train)


def test_a_repeated_question_is_dropped_and_counted(tmp_path):
    given = write_sources(tmp_path, COUNTS)
    path = tmp_path / "commonsense" / "winogrande" / "train.json"
    rows = json.loads(path.read_text())
    repeated = [{**row, "instruction": row["instruction"].replace("num", "NUM")} for row in rows]
    path.write_text(json.dumps(rows + repeated))
    parts = write_parts(Sources(**given), "commonsense", tmp_path / "parts")
    heldout = {row["instruction"].lower() for row in read(parts.heldout)}
    assert not heldout & {row["instruction"].lower() for row in read(parts.train)}
    assert sum(parts.counts["contaminated"].values()) > 0


def test_a_split_is_the_same_each_time(sources, parts, tmp_path):
    again = write_parts(sources, "commonsense", tmp_path)
    assert again.digest == parts.digest
    assert again.train.read_text() == parts.train.read_text()


def test_a_choice_is_told_by_the_token_in_which_it_differs(parts):
    tokenizer = tiny_tokenizer()
    study = load_study_data("commonsense", parts, 400, tokenizer, 264)
    assert len(study.choices) == len(study.heldout) == len(read(parts.heldout))
    for number, (task, choice) in enumerate(zip(study.tasks, study.choices, strict=True)):
        ids = study.heldout[number].input_ids
        assert ids[choice.place] == choice.candidates[choice.correct]
        texts = [tokenizer.encoder.decode([token]) for token in choice.candidates]
        assert texts == ["1", "2", "3", "4"][: 4 if task == "arc_easy" else 2]


def test_longer_examples_are_left_out_with_their_choices(parts):
    longest = load_study_data("commonsense", parts, 400, tiny_tokenizer(), 264).heldout
    limit = int(sorted(longest.lengths)[len(longest) // 2])
    study = load_study_data("commonsense", parts, limit, tiny_tokenizer(), 264)
    assert 0 < len(study.heldout) < len(longest)
    assert len(study.tasks) == len(study.choices) == len(study.heldout)
    for number, choice in enumerate(study.choices):
        assert study.heldout[number].labels[choice.place] == choice.candidates[choice.correct]


def test_choices_that_differ_in_several_tokens_are_refused(tmp_path):
    given = write_sources(tmp_path, {"piqa": 10})
    path = tmp_path / "commonsense" / "piqa" / "train.json"
    path.write_text(path.read_text().replace("solution1", "true").replace("solution2", "false"))
    parts = write_parts(Sources(**given), "commonsense", tmp_path / "parts")
    with pytest.raises(UserError, match="differ in one token"):
        load_study_data("commonsense", parts, 400, tiny_tokenizer(), 264)


def test_gsm8k_has_a_part_of_its_training_file_apart(sources, tmp_path):
    parts = write_parts(sources, "gsm8k", tmp_path)
    train, heldout = read(parts.train), read(parts.heldout)
    assert len(train) + len(heldout) == 36
    assert not {row["question"] for row in train} & {row["question"] for row in heldout}
    study = load_study_data("gsm8k", parts, 400, tiny_tokenizer(), 264)
    assert set(study.choices) == {None}


def test_data_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(UserError, match="commonsense needs a folder"):
        write_parts(Sources(), "commonsense", tmp_path)
    with pytest.raises(UserError, match="training file of a task"):
        write_parts(Sources(commonsense=str(tmp_path)), "commonsense", tmp_path)
