"""A model folder from somebody else: its weights are read, its code is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from diablo_ds.data.text.tokenization import load_tokenizer
from diablo_ds.errors import UserError
from diablo_ds.model.architecture import build_meta_model, load_model_config
from diablo_ds.model.finding import find_model
from diablo_ds.zero.loading import load_base
from tests.tiny import save_model

_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path({mark!r}).touch()
class EvilConfig(LlamaConfig):
    model_type = "evil"
class EvilModel(LlamaForCausalLM):
    config_class = EvilConfig
class EvilTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def mark(tmp_path) -> Path:
    """What exists once code of the model folder has run."""
    return tmp_path / "executed"


@pytest.fixture
def model(tmp_path, mark, monkeypatch) -> Path:
    """A whole model with code beside it, and a user who says yes to whatever is asked."""
    folder = save_model(tmp_path / "model")
    (folder / "evil.py").write_text(_CODE.format(mark=str(mark)))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder


def _change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


_CONFIG = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}


def test_code_of_an_unknown_architecture_is_refused(model, mark):
    _change(model / "config.json", model_type="evil", auto_map=_CONFIG)
    with pytest.raises(UserError, match="code that a model brings is not run"):
        load_model_config(model)
    assert not mark.exists()


def test_code_that_stands_for_a_known_architecture_is_ignored(model, mark):
    _change(model / "config.json", auto_map=_CONFIG)
    config = load_model_config(model)
    assert type(build_meta_model(config)).__name__ == "LlamaForCausalLM"
    assert type(load_base(find_model(str(model)), "fp32")).__name__ == "LlamaForCausalLM"
    assert not mark.exists()


def test_code_of_a_tokenizer_is_not_run(model, mark):
    map_ = {"AutoTokenizer": [None, "evil.EvilTokenizer"]}
    _change(model / "tokenizer_config.json", auto_map=map_, tokenizer_class="EvilTokenizer")
    try:
        load_tokenizer(model)
    except UserError as error:
        assert "tokenizer" in str(error)  # noqa: PT017 - either will do
    assert not mark.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_kernels_that_a_config_would_fetch_are_refused(model, key):
    _change(model / "config.json", **{key: "evil/kernel"})
    with pytest.raises(UserError, match=r"must name no kernels of the hub; got .*evil/kernel"):
        load_model_config(model)


def test_pickled_weights_are_refused(model, mark):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (mark,))

    (model / "model.safetensors").rename(model / "decoy.safetensors")
    torch.save({"model.embed_tokens.weight": Evil()}, model / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"safetensors|causal LM"):
        load_base(find_model(str(model)), "fp32")
    assert not mark.exists()
