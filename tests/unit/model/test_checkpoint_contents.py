"""Checkpoints hold what their architecture needs, and configs say what can be built."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diablo_ds.errors import UserError
from diablo_ds.model.architecture import build_meta_model, load_model_config
from diablo_ds.model.base import read_base
from diablo_ds.training.inputs import padding_id
from tests.tiny import save_model, tiny_tokenizer

Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


def _change(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def _configure(folder: Path, **values: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


def test_a_whole_checkpoint_is_read(folder):
    base = read_base(folder)
    assert base.vocab_size == 264
    assert base.model_config.model_type == "llama"


def _fp8_with_scales(tensors) -> None:
    tensors[Q] = tensors[Q].to(torch.float8_e4m3fn)
    tensors[f"{Q}_scale_inv"] = torch.ones(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_fp8_with_scales, rf"no place for; got 1, e.g. {Q}_scale_inv .*quantised weights"),
        (lambda t: t.update(extra=torch.ones(2)), r"no place for; got 1, e.g. extra unexpected"),
        (
            lambda t: t.update({Q: t[Q].to(torch.float8_e4m3fn)}),
            r"16, 32 or 64 bits.*float8_e4m3fn",
        ),
        (lambda t: t.update({Q: t[Q].to(torch.int8)}), rf"16, 32 or 64 bits.*{Q} in int8"),
        (lambda t: t.pop(Q), rf"every tensor of the model; got 1, e.g. {Q} missing"),
        (
            lambda t: t.update({Q: torch.ones(3, 32)}),
            rf"{Q} of \[3, 32\] in the files and \[32, 32\]",
        ),
        (
            lambda t: t.update({"model.embed_tokens.weight": torch.ones(300, 32)}),
            r"embed_tokens.weight of \[300, 32\] .*\[264, 32\].*correct vocab_size",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, change, message):
    _change(folder, change)
    with pytest.raises(UserError, match=message):
        read_base(folder)


@pytest.mark.slow
def test_without_accelerate_a_checkpoint_is_compared_by_its_names(folder):
    _change(folder, lambda tensors: tensors.update(extra=torch.ones(2)))
    code = (
        "import sys; sys.modules['accelerate'] = None\n"
        "from pathlib import Path; from diablo_ds.model.base import read_base\n"
        "try:\n    read_base(Path(sys.argv[1]))\n"
        "except ValueError as error:\n    print(error)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "no place for; got 1, e.g. extra unexpected" in done.stdout


def test_tensors_that_an_architecture_ignores_may_be_there(tmp_path):
    folder = save_model(tmp_path / "model", "gpt_neox")
    extra = {
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(4),
    }
    _change(folder, lambda tensors: tensors.update(extra))
    read_base(folder)


def test_a_tied_head_may_be_there(folder):
    _change(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    read_base(folder)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", "mxfp4"])
def test_quantised_weights_are_refused(folder, method):
    _configure(folder, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(
        UserError, match=f"must not be quantised.*got quantization method {method!r}"
    ):
        read_base(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": -32},
        {"hidden_size": 0},
        {"hidden_size": "32"},
        {"hidden_size": 30.5},
        {"hidden_size": None},
        {"hidden_size": True},
        {"num_hidden_layers": -1},
        {"num_attention_heads": 3},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 3},
        {"num_key_value_heads": -2},
        {"vocab_size": -1},
        {"vocab_size": "many"},
        {"vocab_size": 263},
        {"intermediate_size": -4},
        {"intermediate_size": [64]},
        {"hidden_act": "silo"},
        {"hidden_act": 3},
        {"model_type": "lama"},
        {"model_type": 7},
        {"rms_norm_eps": "small"},
        {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1.0}},
        {"rope_parameters": [1, 2]},
        {"head_dim": 0},
        {"head_dim": 7},
        {"tie_word_embeddings": "yes"},
        {"max_position_embeddings": -1},
        {"pad_token_id": -9},
        {"layer_types": ["full_attention"]},
    ],
    ids=str,
)
def test_a_broken_config_is_our_error_or_a_model_that_runs(folder, values):
    _configure(folder, **values)
    try:
        read_base(folder)
    except UserError:
        return
    assert values.keys() <= {"tie_word_embeddings", "pad_token_id", "max_position_embeddings"}


@pytest.mark.parametrize("text", ["[]", "3", "{}", "{", '{"model_type": null}', '"llama"'])
def test_a_config_that_is_no_object_is_named(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        load_model_config(folder)


def test_a_model_that_generates_no_text_is_refused(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UserError, match="must be a causal LM; got model_type='vit'"):
        build_meta_model(load_model_config(folder))


def test_padding_takes_a_token_that_the_model_knows():
    tokenizer = tiny_tokenizer()
    assert padding_id(tokenizer, 257) == 256
    assert padding_id(tokenizer, 100) == 0
