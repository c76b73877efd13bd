"""How often base weights are gathered, and delta gradients reduced, in a step."""

from __future__ import annotations

import dataclasses
import inspect
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from diablo_ds.zero.engine import Engine
from tests.distributed.runner import run_distributed
from tests.distributed.training import (
    CONFIG,
    build,
    each_case,
    take_step,
)
from tests.tiny import save_model

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), num_hidden_layers=4)


class _Gathers:
    """Counts how often each parameter is gathered; changes nothing."""

    def __init__(self, engine: Engine) -> None:
        self.counts: Counter[str] = Counter()
        names = {id(p): name for name, p in engine.module.named_parameters()}
        for parameter in engine.module.parameters():
            for method in ("all_gather_coalesced", "all_gather"):
                self._wrap(parameter, method, names)

    def _wrap(self, parameter: Any, method: str, names: dict[int, str]) -> None:
        original = getattr(parameter, method)

        def counted(params: Any = None, *args: Any, **kwargs: Any) -> Any:
            gathered = [parameter] if params is None else params
            self.counts.update(names[id(p)] for p in gathered)
            return original(params, *args, **kwargs)

        setattr(parameter, method, counted)


class _Reductions:
    """Counts reductions and the elements they reduce, from before the engine is built."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_elements: list[int] = []
        inputs = {"all_reduce": "tensor", "reduce": "tensor", "reduce_scatter_tensor": "input"}
        for name, argument in inputs.items():
            self._wrap(name, argument, monkeypatch)

    def _wrap(self, name: str, argument: str, monkeypatch: pytest.MonkeyPatch) -> None:
        original = getattr(dist, name)
        signature = inspect.signature(original)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.num_elements.append(signature.bind(*args, **kwargs).arguments[argument].numel())
            return original(*args, **kwargs)

        monkeypatch.setattr(dist, name, counted)


# DeepSpeed keeps up to 1e9 gathered elements from forward to backward: all of a small model. Here
# it may keep little more than the head counted twice and one decoder layer.
ONE_LAYER = {"stage3_max_reuse_distance": 20_000, "stage3_max_live_parameters": 20_000}


def _check_gathers(rank: int, folder: Path, recomputation: bool, reentrant: bool) -> None:
    config = dataclasses.replace(CONFIG, recompute=recomputation, reentrant=reentrant)
    engine = build(folder, "zero3.json", config, changes=ONE_LAYER)
    for step in range(2):  # DeepSpeed records its trace in the first step
        take_step(engine, step, config)
    gathers = _Gathers(engine)
    take_step(engine, 2, config)
    num_micro_steps = config.accumulation_steps(2)
    assert num_micro_steps == 2
    matrices = {n for n, p in engine.module.named_parameters() if len(p.ds_shape) == 2}
    decoder = {n: c for n, c in gathers.counts.items() if n in matrices and ".layers." in n}
    assert decoder.keys() == {n for n in matrices if ".layers." in n}
    # Deltas and norms: all in the one all-gather that follows the optimizer step.
    rest = {c for n, c in gathers.counts.items() if n not in matrices}
    assert rest == {1}, gathers.counts
    per_weight = [count / num_micro_steps for count in decoder.values()]
    # Below 2, since the last layer of the forward is the first of the backward.
    assert 1.5 < sum(per_weight) / len(per_weight) < 2.0, gathers.counts
    assert max(per_weight) <= 2.0


def test_a_base_weight_is_gathered_at_most_twice_per_micro_step(model_folder, tmp_path):
    cases = [(False, False), (True, False), (True, True)]  # recomputation, re-entrant
    run_distributed(each_case, 2, tmp_path, _check_gathers, model_folder, cases)


def _count_all_reductions(rank: int, folder: Path, ds_files: Sequence[str]) -> None:
    # Once for all: DeepSpeed keeps the functions that it finds at its start.
    with pytest.MonkeyPatch.context() as monkeypatch:
        reductions = _Reductions(monkeypatch)
        for ds_file in ds_files:
            _count_reductions(reductions, folder, ds_file)


def _count_reductions(reductions: _Reductions, folder: Path, ds_file: str) -> None:
    counts = {}
    for global_batch in (4, 16):  # 1 and 4 micro batches per rank and step
        config = dataclasses.replace(CONFIG, global_batch=global_batch)
        engine = build(folder, ds_file, config)
        take_step(engine, 0, config)
        reductions.num_elements.clear()
        take_step(engine, 1, config)
        counts[global_batch] = sorted(reductions.num_elements)
        engine.close()
    assert counts[4] == counts[16], (ds_file, counts)
    # All deltas at once, and small change: norms, padding.
    num_elements = sum(getattr(d, "ds_numel", d.numel()) for d in engine.deltas.values())
    assert num_elements <= sum(counts[4]) < num_elements + 100, (ds_file, counts)
    assert sum(count > 10 for count in counts[4]) == 1


def test_delta_gradients_are_reduced_once_per_step(model_folder, tmp_path):
    ds_files = ("zero0.json", "zero1.json", "zero2.json", "zero3.json")
    run_distributed(_count_all_reductions, 2, tmp_path, model_folder, ds_files)
