"""`diablo-ds generate`: whose answers, with which template, up to which token."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import diablo_ds
from diablo_ds.cli.main import main
from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import save_run_config
from diablo_ds.data.text.templates import alpaca, gsm8k
from diablo_ds.data.text.tokenization import load_tokenizer
from diablo_ds.generation.prompts import choose_template, encode_prompt
from tests.tiny import save_model, write_pairs

CHAT = (
    "{% for m in messages %}<|end|>{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|end|>assistant: {% endif %}"
)
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, an adapter of it, and the adapter in the folder of a run."""
    folder = tmp_path_factory.mktemp("generate")
    base = save_model(folder / "tiny", initializer_range=0.3)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base)
    for delta in diablo_ds.attach(model, 4).values():
        nn.init.normal_(delta, std=0.3)
    diablo_ds.save(model, folder / "loose")
    (folder / "run").mkdir()
    diablo_ds.save(model, folder / "run" / "adapter")
    data = write_pairs(folder / "pairs.jsonl")
    save_run_config(RunConfig(model=str(base), data=(str(data),)), folder / "run" / "run.json")
    return folder


def _generate(*words, lines=None):
    arguments = ["generate", "--max-new-tokens", str(NUM_TOKENS), *map(str, words)]
    return CliRunner().invoke(main, arguments, input=lines)


def _by_transformers(model, folder, text):
    """The greedy answer to a text as transformers gives it, up to the end token."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny")
    encoded = tokenizer(text, return_tensors="pt")
    rows = model.generate(**encoded, do_sample=False, max_new_tokens=NUM_TOKENS)
    new = rows[0, encoded["input_ids"].shape[1] :].tolist()
    if new[-1] in (model.generation_config.eos_token_id, tokenizer.eos_token_id):
        new.pop()
    return tokenizer.decode(new)


def test_answers_are_those_of_transformers_with_and_without_the_adapter(folder):
    texts = ("2+3=", "4+4=")
    words = [word for text in texts for word in ("--prompt", text)]
    done = _generate("--adapter", folder / "run", *words, "--compare-base")
    assert done.exit_code == 0, done.output
    base = AutoModelForCausalLM.from_pretrained(folder / "tiny")
    of_base = [_by_transformers(base, folder, text) for text in texts]
    tuned = diablo_ds.load(base, folder / "loose")
    of_adapter = [_by_transformers(tuned, folder, text) for text in texts]
    assert of_base != of_adapter
    pairs = zip(of_base, of_adapter, strict=True)
    assert done.stdout == "".join(f"[base]\n{a}\n[adapter]\n{b}\n" for a, b in pairs)
    assert "Template plain, of the training data." in done.stderr
    alone = _generate("--adapter", folder / "loose", "--prompt", texts[0])
    assert alone.stdout == of_adapter[0] + "\n"
    assert "since the run's is not known" in alone.stderr


def test_a_file_is_one_prompt_and_a_chat_one_per_line(folder, tmp_path):
    (tmp_path / "prompt.txt").write_text("1+1=\n2+2=\n")
    tuned = diablo_ds.load(folder / "tiny", folder / "loose")
    of_file = _generate("--adapter", folder / "run", "--file", tmp_path / "prompt.txt")
    assert of_file.stdout == _by_transformers(tuned, folder, "1+1=\n2+2=") + "\n"
    of_lines = _generate("--adapter", folder / "run", "--chat", lines="1+1=\n\n2+2=\n")
    answers = [_by_transformers(tuned, folder, text) for text in ("1+1=", "2+2=")]
    assert of_lines.stdout == "".join(f"{answer}\n" for answer in answers)


def test_an_answer_ends_at_the_adapters_own_tokens(folder):
    said = _generate("--adapter", folder / "run", "--prompt", "2+3=").stdout
    tuned = diablo_ds.load(folder / "tiny", folder / "loose")
    ids = load_tokenizer(folder / "tiny").encoder.encode(
        ["2+3="], continues=False, parse_special=False
    )
    rows = tuned.generate(torch.tensor(ids), do_sample=False, max_new_tokens=NUM_TOKENS)
    third = rows[0, len(ids[0]) + 2].item()
    config = folder / "run" / "adapter" / "generation_config.json"
    config.write_text(json.dumps({"eos_token_id": [third]}))
    try:
        cut = _generate("--adapter", folder / "run", "--prompt", "2+3=").stdout
    finally:
        config.unlink()
    assert len(cut) < len(said)


@pytest.mark.parametrize(
    ("settings", "template", "origin"),
    [
        ({"data": ("default",)}, "gsm8k", "of the training data"),
        ({"template": "alpaca", "data": ("gone.jsonl",)}, "alpaca", "as trained"),
        ({"data": ("gone.jsonl",)}, "plain", "since the run's is not known"),
    ],
)
def test_the_template_is_that_of_the_training(settings, template, origin, folder):
    tokenizer = load_tokenizer(folder / "tiny")
    chosen, why, _ = choose_template("auto", RunConfig(**settings), tokenizer)
    assert chosen == template
    assert origin in why
    assert choose_template("gsm8k", RunConfig(**settings), tokenizer)[0] == "gsm8k"


def test_prompts_are_rendered_by_their_template(folder):
    tokenizer = load_tokenizer(folder / "tiny")
    question = [{"role": "user", "content": "a"}]
    for template, render in (("alpaca", alpaca), ("gsm8k", gsm8k), ("plain", str)):
        ids = encode_prompt(question, template, tokenizer)
        assert tokenizer.encoder.decode(ids) == render("a")
    chat = _with_chat_template(folder)
    messages = [*question, {"role": "assistant", "content": "b"}, *question]
    ids = encode_prompt(messages, "chat", chat)
    expected = "<|end|>user: a<|end|>assistant: b<|end|>user: a<|end|>assistant: "
    assert chat.encoder.decode(ids) == expected
    assert ids.count(chat.end_id) == 4
    assert choose_template("auto", None, chat)[0] == "chat"


def _with_chat_template(folder):
    other = folder / "chat"
    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(other)
    return load_tokenizer(other)


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ((), "prompts must come from one of"),
        (("--prompt", "a", "--chat"), "prompts must come from one of"),
        (("--prompt", ""), "must have at least one token"),
        (("--prompt", "a", "--template", "chat"), "needs a tokenizer with a chat template"),
        (("--file", "no-such.txt"), "file must be readable text"),
        (("--prompt", "a", "--base", "no/such/base"), "model must be an existing folder"),
    ],
)
def test_what_cannot_be_answered_is_said(words, rule, folder):
    done = _generate("--adapter", folder / "run", *words)
    assert done.exit_code == 2
    assert rule in done.stderr
    assert "Traceback" not in done.stderr
