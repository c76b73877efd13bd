from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from diablo_ds.cli.prepare import prepare
from diablo_ds.config.choices import CORPORA
from tests.tiny import byte_tokenizer


@pytest.mark.parametrize("corpus", [(), ("auto",)])
def test_the_corpus_auto_need_not_be_named(corpus, tmp_path):
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    source = tmp_path / "alpaca.json"
    source.write_text(json.dumps([{"instruction": "Q", "input": "", "output": "A"}]))
    options = ["--source", source, "--tokenizer", tmp_path / "tokenizer", "--num-proc", 1]
    words = [*corpus, *options, "--output", tmp_path / "out"]
    result = CliRunner().invoke(prepare, list(map(str, words)))
    assert result.exit_code == 0, result.output
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["options"]["family"] == "auto"
    assert manifest["templates"] == {"alpaca": "alpaca"}


def test_the_help_names_every_corpus():
    text = CliRunner().invoke(prepare, ["--help"]).output
    assert all(corpus in text for corpus in CORPORA)
