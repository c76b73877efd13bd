"""Prompts have the control tokens that the prompts of the training had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.data.corpora.encoding import RowEncoder
from diablo_ds.data.corpora.raw_rows import RawRow
from diablo_ds.data.labels import IGNORE_LABEL
from diablo_ds.data.prepare import pipeline
from diablo_ds.data.prepare.options import PrepareOptions
from diablo_ds.data.text.tokenization import load_tokenizer
from diablo_ds.errors import UserError
from diablo_ds.evaluation.inputs import read_inputs
from diablo_ds.evaluation.loss_data import load_loss_examples
from diablo_ds.evaluation.options import EvaluateOptions
from diablo_ds.evaluation.preparation import _choose_forms
from diablo_ds.evaluation.prompts import choose_task_form, encode_choices, encode_questions
from diablo_ds.evaluation.question import Question
from diablo_ds.evaluation.tasks import find_task
from diablo_ds.generation.prompts import choose_template, encode_prompt
from diablo_ds.model.finding import find_tokenizer
from tests.tokenizers_for_tests import save_bytelevel, save_metaspace

CHOICES = ("auto", "read", "text")
PROMPTS = ("what is 12?", "<s>what is 12?", "what <|start|> is 12?", "<|start|>what <|end|> is\n")
ANSWER = "the answer is 42"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer's folder, and a file of pairs."""
    folder = tmp_path_factory.mktemp("control")
    save_bytelevel(folder / "tokenizer", bos=True)
    rows = ({"prompt": prompt, "completion": ANSWER} for prompt in PROMPTS)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module", params=["bytelevel", "metaspace"])
def tokenizer(request, folder, tmp_path_factory):
    if request.param == "bytelevel":
        return load_tokenizer(folder / "tokenizer")
    return load_tokenizer(save_metaspace(tmp_path_factory.mktemp("metaspace")))


def with_choice(folder, choice):
    """A run on the pairs."""
    return RunConfig(data=(str(folder / "pairs.jsonl"),), control_tokens=choice)


def trained(run_config, tokenizer):
    """Prompts and answers of the training examples, as tokens."""
    encoder = RowEncoder.from_settings(run_config, tokenizer, family=run_config.corpus)
    for number, prompt in enumerate(PROMPTS, start=1):
        row = json.dumps({"prompt": prompt, "completion": ANSWER}).encode()
        (result,) = encoder.encode([RawRow(number, row)])
        ids, labels = result.examples[0]
        start = next(i for i, label in enumerate(labels) if label != IGNORE_LABEL)
        yield prompt, tuple(ids[:start]), tuple(ids[start:-1])


@pytest.mark.parametrize("template", ["auto", "plain"])
@pytest.mark.parametrize("choice", CHOICES)
def test_prompts_are_those_of_the_training(choice, template, folder, tokenizer):
    data = (str(folder / "pairs.jsonl"),)
    run_config = RunConfig(data=data, control_tokens=choice, template=template)
    form = choose_task_form(find_task("jsonl"), "auto", run_config, tokenizer)
    of_generate = choose_template("auto", run_config, tokenizer)
    for asked in (form, of_generate):
        assert (asked.template, asked.control_tokens) == ("plain", choice)
    for prompt, ids, answer in trained(run_config, tokenizer):
        question = Question("1", prompt, choices=(ANSWER,))
        assert encode_questions([question], "plain", tokenizer, form.control_tokens) == [ids]
        assert encode_choices([question], "plain", tokenizer, form.control_tokens) == [(answer,)]
        message = [{"role": "user", "content": prompt}]
        own = encode_prompt(message, "plain", tokenizer, of_generate.control_tokens)
        assert tuple(own) == ids


def test_the_choices_differ(folder, tokenizer):
    prompts = {
        choice: [ids for _, ids, _ in trained(with_choice(folder, choice), tokenizer)]
        for choice in CHOICES
    }
    assert prompts["auto"] != prompts["read"] != prompts["text"] != prompts["auto"]


@pytest.mark.parametrize("choice", CHOICES)
def test_a_prepared_dataset_says_it_too(choice, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "load_tokenizer", load_tokenizer)  # without another process
    prepared = PrepareOptions(
        family="auto",
        source=(str(folder / "pairs.jsonl"),),
        tokenizer=str(folder / "tokenizer"),
        output=tmp_path / "out",
        control_tokens=choice,
    )
    pipeline.prepare(prepared, find_tokenizer)
    run_config = RunConfig(data=(str(tmp_path / "out"),))
    tokenizer = load_tokenizer(folder / "tokenizer")
    for task in ("jsonl", "humaneval"):
        form = choose_task_form(find_task(task), "auto", run_config, tokenizer)
        assert (form.template, form.control_tokens) == ("plain", choice)
    assert choose_template("auto", run_config, tokenizer).control_tokens == choice


def test_other_templates_keep_text_as_text_and_the_user_decides(folder):
    tokenizer = load_tokenizer(folder / "tokenizer")
    run_config = with_choice(folder, "read")
    assert choose_template("alpaca", run_config, tokenizer).control_tokens == "auto"
    task = find_task("jsonl")
    assert choose_task_form(task, "alpaca", run_config, tokenizer).control_tokens == "auto"
    assert choose_task_form(task, "auto", run_config, tokenizer, "text").control_tokens == "text"
    assert choose_task_form(task, "auto", None, tokenizer, "text").control_tokens == "text"


@pytest.mark.parametrize("choice", ["read", "text"])
def test_losses_are_of_the_tokens_of_the_training(choice, folder):
    tokenizer = load_tokenizer(folder / "tokenizer")
    examples = load_loss_examples(
        folder / "pairs.jsonl", tokenizer, 1000, max_length=100, control_tokens=choice
    )
    run_config = with_choice(folder, choice)
    expected = [ids + answer for _, ids, answer in trained(run_config, tokenizer)]
    assert [tuple(examples[n][0])[:-1] for n in range(len(examples))] == expected


class Named:
    """Models by name: a base and adapters of runs."""

    def __init__(self, folder, **run_configs):
        self._folder, self._run_configs = folder, run_configs
        self.names = ("base", *run_configs)

    def adapter(self, name):
        return None if name == "base" else Path(name)

    def run_config(self, name):
        return self._run_configs.get(name)

    def tokenizer(self, name):
        return load_tokenizer(self._folder / "tokenizer")


def test_a_base_is_asked_as_the_adapters_are_where_they_agree(folder):
    (folder / "own.jsonl").write_text('{"prompt": "a", "reference": "b"}\n')
    read, text = (with_choice(folder, choice) for choice in ("read", "text"))
    settings = {"data": (f"jsonl={folder / 'own.jsonl'}",), "output": folder / "out"}

    def forms(models, **values):
        options = EvaluateOptions(task=("jsonl",), base="default", **settings, **values)
        chosen = _choose_forms(options, read_inputs(options), models)
        return {name: of_model["jsonl"].text for name, of_model in chosen.items()}

    as_read = "plain, control tokens read"
    assert forms(Named(folder, a=read)) == {"base": as_read, "a": as_read}
    as_text = "plain, control tokens as text"
    found = forms(Named(folder, a=read, b=text))
    assert found == {"base": "plain", "a": as_read, "b": as_text}
    found = forms(Named(folder, a=read, b=text), control_tokens="text")
    assert set(found.values()) == {as_text}
    with pytest.raises(UserError, match="control_tokens needs the template plain"):
        forms(Named(folder, a=read), template="alpaca", control_tokens="text")
