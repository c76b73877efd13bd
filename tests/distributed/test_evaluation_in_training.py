"""A run's live engine answers like the model alone, and trains on as if it had not been asked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from diablo_ds.adapter.attach import attach, load_deltas
from diablo_ds.evaluation.engine import Engine
from diablo_ds.model.batch_rules import BatchLimits
from diablo_ds.model.deltas import choose_num_blocks
from diablo_ds.zero.loading import load_base
from tests.answers import answers, spread
from tests.distributed.runner import run_distributed
from tests.distributed.training import CONFIG, NUM_STEPS, build, each_case, take_step
from tests.tiny import build_model, byte_tokenizer, tiny_tokenizer

pytestmark = pytest.mark.distributed

CASES = [("zero2.json", "off"), ("zero3.json", "off"), ("zero3.json", "on")]
SMALL = BatchLimits(cache_tokens=150, forward_tokens=60, logit_rows=60, rows=2)


def _train(rank: int, folder: Path, ds_file: str, compile_layers: str) -> None:
    config = dataclasses.replace(CONFIG, compile=compile_layers)
    losses = []
    for asks in (False, True):
        engine = build(folder / "model", ds_file, config)
        results = [take_step(engine, step, config) for step in range(NUM_STEPS // 2)]
        if asks:
            decode = tiny_tokenizer().encoder.decode
            in_step = engine.stage == 3
            evaluation = Engine(engine.model, decode, in_step=in_step, limits=SMALL)
            with engine.evaluating():
                found = answers(evaluation)
                assert found == answers(evaluation)
            engine.gather_deltas()
            deltas = {name: delta.detach().clone() for name, delta in engine.deltas.items()}
        results += [take_step(engine, step, config) for step in range(NUM_STEPS // 2, NUM_STEPS)]
        losses.append([result.loss for result in results])
        engine.close()
    assert losses[0] == losses[1]
    if rank == 0:
        name = f"{ds_file}-{compile_layers}"
        (folder / f"{name}.json").write_text(json.dumps(found))
        torch.save(deltas, folder / f"{name}.pt")


def test_a_live_engine_answers_and_trains_on(tmp_path):
    model = spread(build_model())
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    run_distributed(each_case, 2, tmp_path, _train, tmp_path, CASES)
    for ds_file, compile_layers in CASES:
        found = json.loads((tmp_path / f"{ds_file}-{compile_layers}.json").read_text())
        alone = load_base(tmp_path / "model", "fp32").eval()
        attach(alone, choose_num_blocks(alone, CONFIG))
        load_deltas(alone, torch.load(tmp_path / f"{ds_file}-{compile_layers}.pt"))
        expected = json.loads(json.dumps(answers(Engine(alone, tiny_tokenizer().encoder.decode))))
        assert found["generate"] == expected["generate"]
        for key, name in (("choose", "log_likelihoods"), ("losses", "nats")):
            for one, other in zip(found[key], expected[key], strict=True):
                assert one.pop(name) == pytest.approx(other[name], abs=1e-4)
                assert one.items() <= other.items()
