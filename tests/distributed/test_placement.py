"""Base sharded, deltas replicated, few gathers, one reduction, nothing kept alive."""

from __future__ import annotations

import ctypes
import dataclasses
import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from diablo_ds.adapter.blocks import dense_delta
from diablo_ds.adapter.layer import DiaBloLinear
from diablo_ds.model.architecture import BaseSizes
from diablo_ds.ranks import distributed
from diablo_ds.training.step import evaluate, train_step
from diablo_ds.zero import engine as ds_engine
from diablo_ds.zero import joining, placement
from diablo_ds.zero.ds_config import complete_ds_config, load_ds_config
from diablo_ds.zero.gradients import one_gradient_reduction
from tests.distributed.runner import run_distributed
from tests.distributed.training import CONFIG, DS_CONFIGS, build, learning_rate, micro_batches
from tests.tiny import save_model

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), num_hidden_layers=4)


def _step(engine: Any, deltas: dict[str, Any], step: int, config: Any = CONFIG) -> None:
    batches = micro_batches(step, config, distributed.rank(), distributed.world_size())
    train_step(engine, deltas, batches, learning_rate(config, step))


def _statuses(engine: Any) -> dict[str, str]:
    return {name: p.ds_status.name for name, p in engine.module.named_parameters()}


def _each(
    rank: int, function: Callable[..., None], folder: Path, cases: Sequence[tuple[Any, ...]]
) -> None:
    """Call a function for each case, one after another on the same ranks."""
    for case in cases:
        try:
            function(rank, folder, *case)
        except BaseException as error:
            error.add_note(f"with {case}")
            raise


def _check_placement(rank: int, folder: Path, ds_file: str, num_blocks: str, by_name: bool) -> None:
    config = dataclasses.replace(CONFIG, num_blocks=num_blocks)
    engine, deltas, expected = build(folder, ds_file, config, by_name=by_name)
    k_proj = engine.module.model.layers[0].self_attn.k_proj
    if num_blocks == "1":  # a delta as large as the largest weight, larger than a frozen k or v
        assert max(d.ds_numel for d in deltas.values()) > k_proj.weight.ds_numel
    for step in range(3):
        for name, parameter in engine.module.named_parameters():
            whole = parameter.ds_status.name == "AVAILABLE"
            if name in deltas:
                assert whole, f"{name} before step {step}"
                assert parameter.numel() == parameter.ds_numel
                assert (
                    not by_name
                    or torch.equal(
                        parameter.flatten()[: parameter.ds_tensor.ds_numel],
                        parameter.ds_tensor,
                    )
                    or rank
                )
            elif by_name and len(parameter.ds_shape) > 1:
                assert not whole, f"{name} before step {step}"
                assert parameter.numel() == 0
                assert parameter.ds_tensor.numel() == -(-parameter.ds_numel // 2)
        _step(engine, deltas, step, config)
        placement.verify_placement(
            engine.module, expected, stage=3, world_size=2, when=f"after step {step}"
        )
        evaluate(engine, micro_batches(step, config, rank, 2))
        _step(engine, deltas, step, config)
    # Replicas agree, and each rank's optimizer holds half.
    for name, delta in deltas.items():
        rows = distributed.gather_floats(delta.detach().flatten().tolist(), "cpu")
        assert rows[0] == rows[1], name
    num_masters = sum(p.numel() for p in engine.optimizer.fp32_partitioned_groups_flat)
    assert num_masters == sum(-(-d.ds_numel // 2) for d in deltas.values())


def test_base_is_sharded_and_deltas_are_replicated(model_folder, tmp_path):
    cases = [
        ("zero3.json", "4", True),
        ("zero3.json", "1", True),
        ("zero3_offload.json", "2", True),
        ("zero3.json", "8", False),
    ]
    run_distributed(_each, 2, tmp_path, _check_placement, model_folder, cases)


def _check_violations(rank: int, folder: Path) -> None:
    engine, deltas, expected = build(folder, "zero3.json")
    arguments = {"stage": 3, "world_size": 2, "when": "now"}
    name, delta = next(iter(deltas.items()))
    delta.partition()
    with pytest.raises(RuntimeError, match=f"1 violations: {name} is NOT_AVAILABLE"):
        placement.verify_placement(engine.module, expected, **arguments)
    delta.all_gather()
    weight = engine.module.model.layers[1].mlp.up_proj.weight
    weight.all_gather()
    with pytest.raises(RuntimeError, match=r"up_proj\.weight is AVAILABLE, not NOT_AVAILABLE"):
        placement.verify_placement(engine.module, expected, **arguments)
    weight.partition()
    weight.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"up_proj\.weight has requires_grad=True"):
        placement.verify_placement(engine.module, expected, **arguments)


def test_violations_are_found_and_named(model_folder, tmp_path):
    run_distributed(_check_violations, 2, tmp_path, model_folder)


class _Gathers:
    """Counts how often each parameter is gathered; changes nothing."""

    def __init__(self, engine: Any) -> None:
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
# it may keep nothing, or little more than the head counted twice and one decoder layer.
NO_REUSE = {"stage3_max_reuse_distance": 0, "stage3_max_live_parameters": 0}
ONE_LAYER = {"stage3_max_reuse_distance": 20_000, "stage3_max_live_parameters": 20_000}


def _check_gathers(rank: int, folder: Path, checkpointing: bool, reentrant: bool) -> None:
    config = dataclasses.replace(CONFIG, gradient_checkpointing=checkpointing, reentrant=reentrant)
    engine, deltas, _ = build(folder, "zero3.json", config, changes=ONE_LAYER)
    for step in range(2):  # DeepSpeed records its trace in the first step
        _step(engine, deltas, step, config)
    gathers = _Gathers(engine)
    _step(engine, deltas, 2, config)
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
    cases = [(False, False), (True, False), (True, True)]  # checkpointing, re-entrant
    run_distributed(_each, 2, tmp_path, _check_gathers, model_folder, cases)


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
        engine, deltas, _ = build(folder, ds_file, config)
        _step(engine, deltas, 0, config)
        reductions.num_elements.clear()
        _step(engine, deltas, 1, config)
        counts[global_batch] = sorted(reductions.num_elements)
        engine.destroy()
    assert counts[4] == counts[16], (ds_file, counts)
    # All deltas at once, and small change: norms, padding.
    num_elements = sum(getattr(d, "ds_numel", d.numel()) for d in deltas.values())
    assert num_elements <= sum(counts[4]) < num_elements + 100, (ds_file, counts)
    assert sum(count > 10 for count in counts[4]) == 1


def test_delta_gradients_are_reduced_once_per_step(model_folder, tmp_path):
    ds_files = ("zero0.json", "zero1.json", "zero2.json", "zero3.json")
    run_distributed(_count_all_reductions, 2, tmp_path, model_folder, ds_files)


class _WideNet(nn.Module):
    """Eight DiaBlo layers of 16 MiB each, and activations of next to nothing."""

    WIDTH, DEPTH = 2048, 8

    def __init__(self) -> None:
        super().__init__()
        width = self.WIDTH
        self.layers = nn.ModuleList(
            DiaBloLinear(width, width, num_blocks=64, bias=False) for _ in range(self.DEPTH)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def enable_input_require_grads(self) -> None:
        """The input gets a gradient already."""


class _Leaking(DiaBloLinear):
    """What must not be done: autograd saves a view of the gathered weight."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input @ self.weight.t() + input @ dense_delta(self.delta).t()


def _measure_memory(rank: int, output: Path) -> None:
    import deepspeed

    joining.init_process_group()
    path = DS_CONFIGS / "zero3.json"
    complete = complete_ds_config(
        load_ds_config(path),
        CONFIG,
        world_size=2,
        base=BaseSizes(8, 10_000, 1_000, 1_000),
        source="zero3.json",
    )
    complete["zero_optimization"].update(NO_REUSE)
    layer_bytes = 4 * _WideNet.WIDTH**2
    grown = {}
    for kind in (DiaBloLinear, _Leaking):
        with deepspeed.zero.Init(config_dict_or_path=complete):
            net = _WideNet()
        for layer in net.layers:
            layer.__class__ = kind
        deltas = {n: p for n, p in net.named_parameters() if p.requires_grad}
        engine = ds_engine.build_engine(net, deltas, CONFIG, complete)
        x = torch.zeros(1, _WideNet.WIDTH, requires_grad=True)
        with one_gradient_reduction(engine, deltas):
            engine.backward(engine(x).sum())  # the first pass records DeepSpeed's trace
        engine.step()
        before = _held_bytes()
        y = engine(x)
        grown[kind.__name__] = (_held_bytes() - before) / layer_bytes
        with one_gradient_reduction(engine, deltas):
            engine.backward(y.sum())
        engine.step()
        engine.destroy()
    # Between forward and backward: at most what is prefetched, against all gathered weights.
    assert grown["DiaBloLinear"] < 2.5, grown
    assert grown["_Leaking"] > _WideNet.DEPTH - 2.5, grown


def _held_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    import psutil

    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else freed memory counts as held
    return int(psutil.Process().memory_info().rss)


def test_no_gathered_weight_outlives_the_forward(tmp_path):
    run_distributed(_measure_memory, 2, tmp_path, tmp_path / "out")
