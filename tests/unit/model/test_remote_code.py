"""Code that a model's folder brings: run only where the user's command names the option."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from diablo_ds.config import remote_code
from diablo_ds.config.remote_code import RemoteCode, trust_code, trusts_code
from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import parse_run_config
from diablo_ds.config.starts import BY_COMMAND_ALONE, changed_settings
from diablo_ds.errors import UserError
from diablo_ds.model.architecture import build_meta_model, load_model_config
from diablo_ds.model.small_model import build_small_model
from tests.remote_code import add_code
from tests.tiny import save_model


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "known")


@pytest.fixture
def own(known, tmp_path, monkeypatch):
    for module in ("utils.hub", "dynamic_module_utils"):
        monkeypatch.setattr(f"transformers.{module}.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.delenv(remote_code.VARIABLE, raising=False)
    return add_code(known, tmp_path / "own", tmp_path / "mark")


def test_code_runs_only_where_the_command_says_so(own, known, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--trust-remote-code to run it with your rights"):
        load_model_config(own)
    assert not (tmp_path / "mark").exists()
    monkeypatch.setenv(remote_code.VARIABLE, "1")
    model_config = load_model_config(own)
    assert (tmp_path / "mark").exists()
    shapes = {n: p.shape for n, p in build_meta_model(model_config).named_parameters()}
    usual = build_meta_model(load_model_config(known))
    assert shapes == {n: p.shape for n, p in usual.named_parameters()}
    assert type(build_small_model(model_config, "sdpa")).__name__ == "OwnForCausalLM"
    assert isinstance(next(usual.parameters()), torch.nn.Parameter)


def test_code_of_another_repository_is_refused_all_the_same(own, tmp_path, monkeypatch):
    config = json.loads((own / "config.json").read_text())
    config["auto_map"]["AutoModelForCausalLM"] = "evil/other--modeling.Model"
    (own / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv(remote_code.VARIABLE, "1")
    with pytest.raises(UserError, match="must be in its own folder; got auto_map='evil/other--"):
        load_model_config(own)
    assert not (tmp_path / "mark").exists()


def test_a_model_that_transformers_knows_needs_no_code_of_its_folder(own, tmp_path):
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    assert load_model_config(own).model_type == "llama"
    assert not (tmp_path / "mark").exists()


def test_no_file_can_give_the_setting(monkeypatch):
    monkeypatch.setenv(remote_code.VARIABLE, "1")
    trust_code(RemoteCode())
    assert not trusts_code()
    trust_code(RunConfig(trust_remote_code=True))
    assert trusts_code()
    for name in BY_COMMAND_ALONE:
        with pytest.raises(UserError, match=f"{name} must be given on the command line"):
            parse_run_config({name: True}, Path("theirs.json"))
        record = parse_run_config({name: True, "starts": [{}]}, Path("run.json"))
        assert record == RunConfig()
        assert not changed_settings(record, RunConfig(**{name: True}))
