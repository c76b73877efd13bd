"""Gradients over many micro batches, at every ZeRO stage: summed and reduced in fp32."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diablo_ds.zero.engine import Engine
from tests.distributed.runner import run_distributed
from tests.distributed.training import CONFIG, build, micro_batches
from tests.tiny import save_model

pytestmark = pytest.mark.distributed
STAGES = ("zero0.json", "zero1.json", "zero2.json", "zero3.json", "zero3_offload.json")
REPEATS = 3
ONE_ROW = dataclasses.replace(CONFIG, precision="bf16", weight_decay=0.0, micro_batch=1)
FOUR_ROWS = dataclasses.replace(ONE_ROW, micro_batch=4)
Gradients = dict[str, Tensor]


def _reduced(engine: Engine, batches: Sequence[Any]) -> Gradients:
    """The reduced gradients of this rank's micro batches and others', flat, in fp64.

    A step of length 0 follows: values stay as they are.
    """
    from deepspeed.utils import safe_get_full_grad

    with engine.one_reduction():
        for batch in batches:
            engine.backward(engine.loss(batch))
    grads = {
        name: safe_get_full_grad(delta) if engine.stage else delta.grad
        for name, delta in engine.deltas.items()
    }
    assert {grad.dtype for grad in grads.values()} == {torch.float32}
    result = {name: grad.double().flatten() for name, grad in grads.items()}
    norm = engine.step(0.0, torch.zeros((), device=engine.device), []).grad_norm
    assert norm == pytest.approx(_norm(result), rel=1e-3)  # stage 0 rounds for the norm only
    return result


def _norm(grads: Mapping[str, Tensor]) -> float:
    return float(torch.cat(list(grads.values())).norm())


def _error(value: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    """Norm of the difference, as a share of the exact value's norm."""
    return _norm({name: value[name] - exact[name] for name in exact}) / _norm(exact)


def _measure(rank: int, folder: Path, output: Path) -> None:
    errors = {}
    for ds_file in STAGES:
        engine = build(folder, ds_file, ONE_ROW)
        batches = [batch for step in range(3) for batch in micro_batches(step, ONE_ROW, rank, 2)]
        one_by_one = [_reduced(engine, [batch]) for batch in batches] * REPEATS
        exact = {name: sum(grads[name] for grads in one_by_one) for name in engine.deltas}
        in_bf16 = {name: torch.zeros_like(exact[name], dtype=torch.bfloat16) for name in exact}
        for grads in one_by_one:
            for name, total in in_bf16.items():
                total += grads[name].bfloat16()
        large = [batch for step in range(3) for batch in micro_batches(step, FOUR_ROWS, rank, 2)]
        errors[ds_file] = {
            "num_micro_steps": len(one_by_one),
            "fp32": _error(_reduced(engine, batches * REPEATS), exact),
            "bf16": _error({name: total.double() for name, total in in_bf16.items()}, exact),
            "large": _error(_reduced(engine, large * REPEATS), exact),
        }
        engine.close()
    if rank == 0:
        output.write_text(json.dumps(errors))


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradients")
    model = save_model(folder / "model", num_hidden_layers=1)
    run_distributed(_measure, 2, folder, model, folder / "errors.json")
    return json.loads((folder / "errors.json").read_text())


@pytest.mark.parametrize("ds_file", STAGES)
def test_many_micro_batches_lose_nothing_in_bf16(ds_file, errors):
    found = errors[ds_file]
    assert found["num_micro_steps"] == 36
    assert found["fp32"] < 1e-6
    # What the same sum loses in the model's dtype, so that the line above says something.
    assert found["bf16"] > 2e-3
    # A micro batch's own gradient is rounded to bf16 once, whatever its size.
    assert found["large"] < 5e-3
