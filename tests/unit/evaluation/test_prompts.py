from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.data.corpora.encoding import Encoded, RowEncoder
from diablo_ds.data.corpora.raw_rows import RawRow
from diablo_ds.data.corpora.reading import read_rows
from diablo_ds.data.labels import IGNORE_LABEL
from diablo_ds.data.prepare import pipeline
from diablo_ds.data.prepare.options import PrepareOptions
from diablo_ds.data.text.tokenization import load_tokenizer
from diablo_ds.errors import UserError
from diablo_ds.evaluation.prompts import choose_task_form, encode_choices, encode_questions
from diablo_ds.evaluation.question import Question
from diablo_ds.evaluation.tasks import find_task
from diablo_ds.generation.prompts import choose_template
from diablo_ds.model.finding import find_tokenizer
from tests.chat_templates import FAMILIES
from tests.tokenizers_for_tests import save_bytelevel, save_chat, save_metaspace
from tests.unit.evaluation.corpora import corpus

NUM_ROWS = 100
"""Of each file of the public corpora; all rows of a file have one form."""
QUESTION, CONTEXT = "what is  12 + 30?", "def add(a, b):\n    return a + b"
ANSWERS = ("the answer is 42", "42", "\n A: it is 42", " 42 \n", "<|end|> is text")
EXCHANGES = (
    ("alpaca", "auto", {"instruction": QUESTION, "input": CONTEXT}, "output"),
    ("alpaca", "commonsense", {"instruction": QUESTION, "input": ""}, "output"),
    ("plain", "auto", {"prompt": QUESTION}, "completion"),
    ("plain", "auto", {"prompt": f"<s>{QUESTION}<|end|>\n"}, "completion"),
    ("plain", "auto", {"prompt": f"a <s> {QUESTION}"}, "completion"),
    ("gsm8k", "math", {"question": f"<s>{QUESTION}"}, "answer"),
    ("chat", "auto", {"instruction": QUESTION, "input": CONTEXT}, "output"),
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    return [
        load_tokenizer(path)
        for path in (
            save_bytelevel(folder / "a"),
            save_bytelevel(folder / "b", prefix_space=True, bos=True),
            save_metaspace(folder / "c"),
            save_metaspace(folder / "d", legacy=True),
        )
    ]


def _trained(tokenizer, row, template, family="auto"):
    """The tokens of a training example: those of its prompt, and those that carry loss."""
    encoder = RowEncoder(family, template, tokenizer)
    (result,) = encoder.encode([RawRow(1, json.dumps(row).encode())])
    assert isinstance(result, Encoded), result
    ids, labels = result.examples[-1]
    start = max(i for i, label in enumerate(labels) if label == IGNORE_LABEL) + 1
    return tuple(ids[:start]), tuple(ids[start:])


@pytest.mark.parametrize(("template", "family", "row", "field"), EXCHANGES)
def test_a_prompt_is_that_of_the_training_example(template, family, row, field, tokenizers):
    text = row.get("instruction") or row.get("prompt") or row["question"]
    question = Question("1", text, row.get("input", ""))
    for tokenizer in tokenizers:
        (prompt,) = encode_questions([question], template, tokenizer)
        for answer in ANSWERS:
            response = f"{answer}\n#### 42" if family == "math" else answer
            own = "auto" if template in ("alpaca", "plain", "gsm8k") else template
            trained, _ = _trained(tokenizer, {**row, field: response}, own, family)
            assert prompt == trained, (answer, tokenizer.encoder.decode(prompt))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_is_asked_as_it_was_trained(family, tmp_path):
    tokenizer = load_tokenizer(save_chat(tmp_path, FAMILIES[family]))
    turns = ("user", QUESTION), ("assistant", "it is  41"), ("user", "sure? <|im_end|>")
    messages = tuple({"role": role, "content": text} for role, text in turns)
    for asked in (messages, messages[:1], messages[2:]):
        question = Question("1", messages=asked)
        (prompt,) = encode_questions([question], "chat", tokenizer)
        for answer in ("the answer is 42", "42", "No.\n"):
            last = {"role": "assistant", "content": answer}
            trained, _ = _trained(tokenizer, {"messages": [*asked, last]}, "chat")
            assert prompt == trained, (answer, tokenizer.encoder.decode(prompt))


@pytest.mark.parametrize(
    ("task", "file", "family"),
    [
        ("boolq", "llm-adapters/dataset/boolq/test.json", "commonsense"),
        ("hellaswag", "llm-adapters/dataset/hellaswag/test.json.gz", "commonsense"),
        ("arc_easy", "llm-adapters/dataset/ARC-Easy/test.json.gz", "commonsense"),
        ("gsm8k", "gsm8k/test.jsonl", "math"),
        ("multiarith", "llm-adapters/dataset/MultiArith/test.json", "math"),
        ("aqua", "llm-adapters/dataset/AQuA/test.json", "math"),
        ("math", "math/MATH_test.rebuilt.jsonl.gz", "math"),
        ("mbpp", "mbpp/mbpp.jsonl", "code"),
        ("safety", "safety/advbench/harmful_behaviors.csv", "safety"),
    ],
)
def test_prompts_of_published_rows_are_those_of_training(task, file, family, tokenizers):
    if task == "math":
        pytest.importorskip("math_verify", reason="the package math-verify is not installed")
    path, tokenizer, task = corpus(file), tokenizers[0], find_task(task)
    questions = list(islice(task.read(path), NUM_ROWS))
    encoder = RowEncoder(family, "auto", tokenizer)
    trained = encoder.encode(list(islice(read_rows(path), NUM_ROWS)))
    prompts = encode_questions(questions, task.template, tokenizer)
    choices = encode_choices(questions, task.template, tokenizer)
    assert len(prompts) == len(trained) == NUM_ROWS
    for question, prompt, answers, row in zip(questions, prompts, choices, trained, strict=True):
        ids, labels = row.examples[0]
        num_prompt = labels.index(next(label for label in labels if label != IGNORE_LABEL))
        assert prompt == tuple(ids[:num_prompt])
        if question.choices:
            assert answers[question.correct] == tuple(ids[num_prompt:-1])


def test_choices_are_the_tokens_that_follow_the_prompt(tokenizers, tmp_path):
    choices = tuple(f"the correct answer is answer{n}" for n in (1, 2))
    question = Question("1", QUESTION, choices=choices)
    chat = load_tokenizer(save_chat(tmp_path, FAMILIES["Llama 2"]))
    for template, tokenizer in [("alpaca", t) for t in tokenizers] + [("chat", chat)]:
        (prompt,) = encode_questions([question], template, tokenizer)
        (tokens,) = encode_choices([question], template, tokenizer)
        for choice, ids in zip(choices, tokens, strict=True):
            row = {"instruction": QUESTION, "output": choice}
            trained, answer = _trained(tokenizer, row, template)
            assert trained == prompt
            assert ids == answer[:-1]
            assert tokenizer.encoder.decode([*prompt, *ids]).rstrip().endswith(choice)


ROWS = {
    "chats": {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    },
    "alpaca": {"instruction": "a", "output": "b"},
    "pairs": {"prompt": "a", "completion": "b"},
}


@pytest.mark.parametrize(
    ("settings", "template", "origin"),
    [
        ({"data": ("pairs.jsonl",), "template": "plain"}, "plain", "as trained"),
        ({"data": ("default",)}, "gsm8k", "of the task"),
        ({"data": ("chats.jsonl",)}, "chat", "of the training data"),
        ({"data": ("alpaca.jsonl",)}, "alpaca", "of the training data"),
        ({"data": ("pairs.jsonl",)}, "gsm8k", "of the task"),
        ({"data": ("gone.jsonl",)}, "gsm8k", "of the task"),
    ],
)
def test_the_template_follows_the_training(
    settings, template, origin, tokenizers, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name, row in ROWS.items():
        Path(f"{name}.jsonl").write_text(json.dumps(row))
    run_config = RunConfig(**settings)
    task = find_task("gsm8k")
    tokenizer = tokenizers[0]
    found = choose_task_form(task, "auto", run_config, tokenizer)
    assert found[:2] == (template, origin)
    given = choose_task_form(task, "alpaca", run_config, tokenizer)
    assert given[:2] == ("alpaca", "as given")
    assert choose_task_form(task, "auto", None, tokenizer)[:2] == ("gsm8k", "of the task")
    loss = find_task("loss")
    assert choose_task_form(loss, "auto", run_config, tokenizer)[:2] == ("auto", "of each row")
    assert choose_task_form(loss, "plain", run_config, tokenizer)[:2] == ("plain", "as given")


@pytest.mark.parametrize(
    ("name", "options", "template", "origin"),
    [
        ("chats", {}, "chat", "of the training data"),
        ("alpaca", {}, "alpaca", "of the training data"),
        ("pairs", {}, "gsm8k", "of the task"),
        ("alpaca", {"template": "plain"}, "plain", "as trained"),
    ],
)
def test_the_template_follows_a_prepared_dataset(
    name, options, template, origin, tokenizers, tmp_path, monkeypatch
):
    monkeypatch.setattr(pipeline, "load_tokenizer", load_tokenizer)  # without another process
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[name]))
    prepared = PrepareOptions(
        family="auto",
        source=(str(tmp_path / "rows.jsonl"),),
        tokenizer=str(save_bytelevel(tmp_path / "tokenizer")),
        output=tmp_path / "out",
        **options,
    )
    pipeline.prepare(prepared, find_tokenizer)
    run_config = RunConfig(data=(str(tmp_path / "out"),))
    found = choose_task_form(find_task("gsm8k"), "auto", run_config, tokenizers[0])
    assert found[:2] == (template, origin)
    # diablo-ds generate asks as the dataset's rows were asked, too.
    of_rows = {"chats": "chat", "pairs": "plain"}.get(name, template)
    assert choose_template("auto", run_config, tokenizers[0])[0] == of_rows


def test_a_prompt_that_cannot_be_made_is_an_error(tokenizers):
    without_start = tokenizers[0]
    with pytest.raises(UserError, match="at least one token"):
        encode_questions([Question("1", "")], "plain", without_start)
    with pytest.raises(UserError, match=r"must fit the template alpaca; got 'aaa.*1,000,000"):
        encode_questions([Question("1", "a" * 1_000_001)], "alpaca", without_start)
