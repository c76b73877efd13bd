"""What several benchmarks share: records as JSON lines, and a base model with random weights."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.json_lines import append_line, read_lines, write_line
from benchmarks.random_llama import save_random_llama

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}


def test_records_are_read_back_without_one_that_is_half_written(tmp_path):
    path = tmp_path / "made" / "records.jsonl"
    records = [{"case": "a", "figures": {"ms": 0.5}}, {"case": "ä", "figures": {}}]
    for record in records:
        append_line(path, record)
    assert read_lines(path) == records
    with path.open("ab") as file:
        file.write(b'{"case": "b')
    assert read_lines(path) == records
    with path.open("ab") as file, pytest.raises(ValueError, match="Out of range"):
        write_line(file, {"loss": math.nan}, allow_nan=False)


def test_a_random_model_has_the_same_weights_each_time(tmp_path):
    found = []
    for name in ("one", "other"):
        save_random_llama(tmp_path / name, torch.bfloat16, num_attention_heads=2, **SHAPE)
        found.append(load_file(tmp_path / name / "model.safetensors"))
    assert found[0].keys() == found[1].keys()
    for name, weight in found[0].items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, found[1][name])
