from __future__ import annotations

import json

import pytest
from transformers import LlamaConfig

from diablo_ds.config.run import RunConfig
from diablo_ds.data.loading import load_data
from diablo_ds.data.text.end_tokens import find_end_tokens, generation_config
from diablo_ds.data.text.tokenization import load_tokenizer
from tests.chat_templates import CHATML
from tests.tokenizers_for_tests import save_chat

BASE = CHATML._replace(eos="<|endoftext|>")  # a base model with the chat template of its family
CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
PAIR = {"prompt": "a", "completion": "b"}


@pytest.fixture
def ends(tmp_path):
    tokenizer = load_tokenizer(save_chat(tmp_path / "model", BASE))
    texts = {token.text: token.id for token in tokenizer.control.tokens}

    def find(*rows, **generation):
        path = tmp_path / "d.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        if generation:
            (tmp_path / "model" / "generation_config.json").write_text(json.dumps(generation))
        train, _ = load_data(RunConfig(data=(str(path),), heldout_share=0.0), tokenizer, 1000)
        config = LlamaConfig(eos_token_id=texts["<|endoftext|>"])
        found = find_end_tokens(tokenizer, train.table.last_targets(), tmp_path / "model", config)
        return found, generation_config(found, tmp_path / "model"), texts

    return find


def test_an_end_of_turn_that_the_base_does_not_know_is_said_and_recorded(ends):
    found, recorded, texts = ends(CHAT, CHAT)
    turn, end = texts["<|im_end|>"], texts["<|endoftext|>"]
    assert (found.learnt, found.base) == ((turn,), (end,))
    assert found.describe().startswith(
        f"Answers end with <|im_end|> ({turn}), where the base model ends with <|endoftext|> ({end}"
    )
    assert recorded == {"eos_token_id": [turn, end]}


def test_what_the_base_s_generation_config_has_is_kept(ends):
    _, _, texts = ends(CHAT)
    turn, end = texts["<|im_end|>"], texts["<|endoftext|>"]
    found, recorded, _ = ends(CHAT, eos_token_id=[end, turn], temperature=0.6)
    assert found.describe() == ""
    assert recorded == {"eos_token_id": [turn, end], "temperature": 0.6}


def test_examples_that_end_as_the_base_does_need_no_word(ends):
    found, recorded, texts = ends(PAIR)
    assert found.describe() == ""
    assert recorded == {"eos_token_id": [texts["<|endoftext|>"]]}


def test_both_ways_to_end_are_found_in_mixed_data(ends):
    found, recorded, texts = ends(PAIR, CHAT)
    assert set(found.learnt) == {texts["<|im_end|>"], texts["<|endoftext|>"]}
    assert "where the base model ends with" in found.describe()
    assert set(recorded["eos_token_id"]) == set(found.learnt)
