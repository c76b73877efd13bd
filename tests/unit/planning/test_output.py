"""What a plan writes is what a run takes."""

from __future__ import annotations

import json

import pytest

from diablo_ds.config.remote_code import VARIABLE
from diablo_ds.planning import output
from diablo_ds.zero.ds_config import load_ds_config
from tests.unit.planning.clusters import with_memory


def test_the_written_config_is_one_that_a_run_accepts(llama, tmp_path):
    cluster = with_memory(1e9)
    for candidate in llama.candidates(cluster):
        output.write_output(tmp_path, llama, candidate, "org/model", "a table", {"plan": 1})
        policy = load_ds_config(tmp_path / output.DS_CONFIG_FILE)
        zero = policy["zero_optimization"]
        assert "auto" not in zero.values()
        assert zero["stage"] == candidate.variant.stage
        text = (tmp_path / output.SLURM_FILE).read_text()
        assert "--nodes 2 --gpus-per-node 4" in text
        run = output.planned_run(candidate, "org/model")
        count = candidate.recomputation.num_layers
        assert run.recompute == (count > 0)
        assert run.recomputed_layers == (1 if count == 1 else 0)
    assert json.loads((tmp_path / output.PLAN_FILE).read_text()) == {"plan": 1}


@pytest.mark.parametrize("trusted", [False, True])
def test_the_start_trusts_code_where_the_plan_did(llama, tmp_path, monkeypatch, trusted):
    monkeypatch.delenv(VARIABLE, raising=False)
    if trusted:
        monkeypatch.setenv(VARIABLE, "1")
    candidate = next(iter(llama.candidates(with_memory(1e9))))
    output.write_output(tmp_path, llama, candidate, "org/model", "a table", {})
    for name in (output.LAUNCH_FILE, output.SLURM_FILE):
        assert ("--trust-remote-code" in (tmp_path / name).read_text().split()) == trusted
