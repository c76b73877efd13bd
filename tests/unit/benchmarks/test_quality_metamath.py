"""The protocol of the MetaMathQA benchmark: rows, prompts, answers, schedule, settings."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from transformers import get_cosine_schedule_with_warmup

from benchmarks.quality import metamath_protocol as protocol
from benchmarks.quality.metamath import main
from benchmarks.quality.metamath_commands import train_words
from benchmarks.quality.metamath_settings import Settings, sizes
from diablo_ds.config.schedule import lr_factor
from diablo_ds.errors import UserError
from tests.tiny import save_model


def _pair(query="How many?", response="Two.", original=""):
    return protocol.Pair(query, response, original)


def _settings(tmp_path, **changes):
    values = {"test": tmp_path / "test", "output": tmp_path / "output", "examples": 8, "steps": 2}
    return Settings(model="default", data="data", **(values | changes))


# --- data ----------------------------------------------------------------------------------------


def test_a_training_text_begins_with_the_prompt_of_its_question():
    pair = _pair("2 + 3?", "It is 5.\n#### 5\nThe answer is: 5")
    assert pair.text == "Question: 2 + 3? Think step by step.\nAnswer:" + pair.response
    assert protocol.prompt_of(pair.query) + pair.response == pair.text


def test_the_first_rows_are_taken_but_for_long_ones_and_tests():
    space = protocol.MAX_CHARACTERS - len("q ")
    pairs = [
        _pair("q", "r" * space),  # as long as may be
        _pair("q", "r" * (space + 1)),
        _pair("How many  EGGS are there"),
        _pair("A rephrased one.", original="How many eggs are there?"),
        _pair("second"),
        _pair("never read"),
    ]
    found = protocol.select(pairs, 2, ["How many eggs are there?"])
    assert found.pairs == [pairs[0], pairs[4]]
    assert (found.num_read, found.num_long, found.num_tests) == (5, 1, 2)
    with pytest.raises(UserError, match=r"examples=4 and 3 rows to train on: 6 read, 1 of more"):
        protocol.select(pairs, 4, ["How many eggs are there?"])


@pytest.mark.parametrize("form", ["json", "jsonl", "parquet"])
def test_rows_are_read_in_their_order_from_every_format(tmp_path, form):
    rows = [
        {"type": "GSM_SV", "query": f"q{n}", "original_question": f"o{n}", "response": f"r{n}"}
        for n in range(3)
    ]
    file = tmp_path / f"MetaMathQA-395K.{form}"
    if form == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        lines = json.dumps(rows) if form == "json" else "\n".join(map(json.dumps, rows))
        file.write_text(lines)
    expected = [protocol.Pair(f"q{n}", f"r{n}", f"o{n}") for n in range(3)]
    assert list(protocol.read_pairs(str(file))) == expected
    assert list(protocol.read_pairs(str(tmp_path))) == expected, "the folder of the file"


def test_a_row_of_another_corpus_is_named_with_its_line(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"query": "q", "response": "r"}\n{"question": "q", "answer": "r"}\n')
    with pytest.raises(UserError, match=r"query and response; got .*rows\.jsonl, line 2: "):
        list(protocol.read_pairs(str(file)))


# --- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "reference", "is_right"),
    [
        ("So 9 * 2 = 18.\n#### 18\nThe answer is: 18", "18", True),
        ("The answer is: 18.", "18", True),
        ("The answer is: $18.00\n\nQuestion: and then?", "18", True),
        ("The answer is 50%", "50", True),
        ("#### 18", "18", True),
        ("The final answer is 36/2.", "18", True),
        ("The answer is: 17. No. The answer is: 18", "18", True),
        ("#### 18\nThe answer is: 17", "18", False),  # the first marker of the list counts
        ("So it is 18", "18", False),  # nothing is stated
        ("The answer is: 18 eggs", "18", False),
        ("The answer is: 1080", "1,080", False),  # a thousands separator makes a text of it
        ("The answer is: 1,080", "1,080", True),
        ("The answer is: 5/0", "5", False),
        ("The answer is: sNaN", "5", False),
        ("The answer is: 1/2/3", "5", False),
        ("The answer is: ", "5", False),
        ("", "5", False),
    ],
)
def test_an_answer_is_judged_as_the_protocol_does(output, reference, is_right):
    assert protocol.is_right(protocol.prompt_of("How many?"), output, reference) is is_right


def test_a_marker_in_the_question_counts_too():
    prompt = protocol.prompt_of("The answer is 7 what?")
    assert not protocol.is_right(prompt, "#### 5", "5")


def test_tokens_are_chosen_as_the_generation_config_says():
    assert protocol.decoding_of({"temperature": 0.6}).temperature == 0
    sampled = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    assert protocol.decoding_of(sampled) == protocol.Decoding(0.6, 0.9)
    assert protocol.decoding_of({"do_sample": True}) == protocol.Decoding(1.0, 1.0)
    with pytest.raises(UserError, match=r"got temperature=0\.6, top_p=2;"):
        protocol.decoding_of(sampled | {"top_p": 2})


# --- settings ------------------------------------------------------------------------------------


def test_the_schedule_is_the_protocols_behind_the_warm_up():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = get_cosine_schedule_with_warmup(optimizer, 4, 40)
    for step in range(40):
        if step >= 4:
            ours = lr_factor("cosine", step, num_steps=40, warmup_steps=4)
            assert theirs.get_last_lr()[0] == pytest.approx(ours, abs=1e-12)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None, None), (20000, 5000)),
        ((8, None), (8, 2)),
        ((None, 7), (28, 7)),
        ((8, 6), (8, 6)),  # more than one pass
    ],
)
def test_examples_and_steps_follow_from_each_other(given, expected):
    assert sizes(*given) == expected


@pytest.mark.parametrize("given", [(3, None), (9, 2), (10, None)])
def test_examples_that_would_not_be_seen_are_refused(given):
    with pytest.raises(UserError, match="examples must be seen, 4 in a step; got examples="):
        sizes(*given)


def test_the_global_batch_stays_on_every_number_of_ranks(tmp_path):
    words = train_words(_settings(tmp_path, ranks=2))
    assert words[:3] == ["launch", "--ranks-per-node", "2"]
    assert words[words.index("--global-batch") + 1] == "4"
    with pytest.raises(UserError, match="got ranks=3"):
        _settings(tmp_path, ranks=3)


def test_the_best_published_result_is_called_so():
    best = max(protocol.PUBLISHED, key=lambda result: result.num_right)
    assert "the best" in best.name
    assert best.num_right / protocol.NUM_QUESTIONS == pytest.approx(0.526, abs=5e-4)


# --- mistakes, before any work -------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    model = save_model(tmp_path / "model", max_position_embeddings=1024)
    rows = [{"query": f"{n} + 1?", "response": f"The answer is: {n + 1}"} for n in range(8)]
    tests = [{"question": f"{n} + 2?", "answer": f"#### {n + 2}"} for n in range(3)]
    for name, part in (("data.json", rows), ("test.json", tests)):
        (tmp_path / name).write_text(json.dumps(part))
    return {
        "model": model,
        "data": tmp_path / "data.json",
        "test": tmp_path / "test.json",
        "output": tmp_path / "out",
        "steps": 2,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "nowhere/at/all"}, "model must be an existing folder; got"),
        ({"data": "nowhere.json"}, "must be an existing file, folder or glob"),
        ({"test": "nowhere.jsonl"}, "--test must name a path that exists"),
        ({"steps": 3}, "got examples=12 and 8 rows to train on"),
        ({"limit": 4}, "limit must be at most the number of test questions; got limit=4 and 3"),
        ({"max-new-tokens": 513}, "got max_position_embeddings=1024"),
        ({"texts": "nowhere.txt"}, "texts must be a path that exists"),
        ({"ranks": 3}, "ranks must divide"),
        ({"learning-rate": 0}, "Invalid value for '--learning-rate'"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(files, changes, message):
    words = [w for name, value in (files | changes).items() for w in (f"--{name}", str(value))]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert not files["output"].exists()


def test_a_folder_with_other_files_is_refused(files):
    files["output"].mkdir()
    (files["output"] / "thesis.txt").write_text("mine")
    words = [w for name, value in files.items() for w in (f"--{name}", str(value))]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "output must be new, empty or a folder of this command" in result.output
    assert [path.name for path in files["output"].iterdir()] == ["thesis.txt"]
