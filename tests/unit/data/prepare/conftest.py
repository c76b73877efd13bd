from __future__ import annotations

import pytest

from diablo_ds.data.corpora import chunking
from diablo_ds.data.prepare import pipeline
from diablo_ds.data.prepare.options import PrepareOptions
from diablo_ds.data.text.tokenization import load_tokenizer
from diablo_ds.model.finding import find_tokenizer
from tests.tiny import byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(chunking, "ROWS_PER_CHUNK", 10)


@pytest.fixture
def prepare(tokenizer_folder, tmp_path, monkeypatch):
    # A process for each call would take seconds; the tests of the command have it.
    monkeypatch.setattr(pipeline, "load_tokenizer", load_tokenizer)

    def run(*sources, output="out", **changes):
        options = PrepareOptions(
            family=changes.pop("family", "auto"),
            source=tuple(map(str, sources)),
            tokenizer=changes.pop("tokenizer", str(tokenizer_folder)),
            output=tmp_path / output,
            **changes,
        )
        return pipeline.prepare(options, find_tokenizer)

    return run
