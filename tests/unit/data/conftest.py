from __future__ import annotations

from functools import cache

import pytest
from transformers import AutoTokenizer

from diablo_ds.data.text.tokenization import load_tokenizer
from tests.tokenizers_for_tests import save_chat


@pytest.fixture(scope="session")
def load(tmp_path_factory):
    """Load a family's tokenizer, in our form and in that of transformers."""
    folder = tmp_path_factory.mktemp("chats")

    @cache
    def load(family, legacy=False):
        path = save_chat(folder / f"{len(list(folder.iterdir()))}", family, legacy=legacy)
        return load_tokenizer(path), AutoTokenizer.from_pretrained(path)

    return load
