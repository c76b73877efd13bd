"""What a run is told at its start is what it gets, also where a trial of its model decided it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.model.architecture import build_meta_model
from diablo_ds.model.base import Base, keep_apart
from diablo_ds.model.varlen import VARLEN
from diablo_ds.training.machine import Machine
from diablo_ds.training.preparing import prepare_run
from diablo_ds.training.resolution import resolve_run
from tests.tiny import FAMILIES, LONG_ROPE, byte_tokenizer, write_pairs

ZERO3 = Path("ds_configs/zero3.json").resolve()


def test_a_base_that_must_not_be_padded_is_told_no_width(tmp_path: Path):
    model = tmp_path / "model"
    AutoModelForCausalLM.from_config(LONG_ROPE).float().save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    settings = {
        "model": str(model),
        "data": (str(write_pairs(tmp_path / "pairs.jsonl")),),
        "output": str(tmp_path / "run"),
        "num_blocks": "4",
        "targets": ("qkv_proj",),
        "max_length": 64,
        "max_steps": 2,
        "precision": "fp32",
    }
    resolution = prepare_run(RunConfig(**settings), ZERO3, torch.device("cpu")).resolution
    assert resolution.run_config.pad_to_multiple_of == 1
    (line,) = [line for line in resolution.lines if "padding" in line]
    assert line.startswith("no padding: it changes this model's losses")
    given = RunConfig(**settings, pad_to_multiple_of=64)
    with pytest.raises(UserError, match=r"must be auto or 1, .*; got pad_to_multiple_of=64"):
        prepare_run(given, ZERO3, torch.device("cpu"))


def test_an_attention_that_the_trial_refuses_is_not_told_as_the_chosen_one():
    config = LlamaConfig.from_dict({**FAMILIES["llama"].to_dict(), "attention_dropout": 0.1})
    base = Base(Path(), config, build_meta_model(config))
    run_config = RunConfig(packing=True, max_length=64, num_blocks="4", precision="bf16")
    machines = [Machine("a", "cuda", attentions_by_length=(VARLEN,))]
    by_speed = resolve_run(run_config, machines, base.shapes)
    assert by_speed.run_config.attention == VARLEN
    found = resolve_run(
        run_config, machines, base.shapes, try_apart=partial(keep_apart, base, asked="auto")
    )
    assert found.run_config.attention == "sdpa"
    (line,) = [line for line in found.lines if line.startswith("attention ")]
    assert line.startswith("attention sdpa: ")
    assert "dropout=0.1" in line
