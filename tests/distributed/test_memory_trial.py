"""A trial of the largest micro step: it leaves nothing behind, and corrects what a plan chose."""

from __future__ import annotations

import ctypes
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import load_run_config
from diablo_ds.data.batch_source import BatchSource
from diablo_ds.data.batches import Dealer
from diablo_ds.errors import UserError
from diablo_ds.files.layout import RunFolder
from diablo_ds.model.architecture import decoder_layers
from diablo_ds.model.recomputation import Recomputation, recompute_layers
from diablo_ds.planning.fitting import Gpus
from diablo_ds.ranks import distributed
from diablo_ds.ranks.device_memory import DeviceMemory
from diablo_ds.training.memory_choice import PlannedMemory
from diablo_ds.training.memory_trial import fit_by_trial
from diablo_ds.training.train import train
from diablo_ds.zero.engine import Engine
from tests.distributed.runner import run_distributed
from tests.distributed.training import CONFIG, DS_CONFIGS, build, each_case, examples, take_step
from tests.tiny import save_model, write_pairs

pytestmark = pytest.mark.distributed
BF16 = dataclasses.replace(CONFIG, precision="bf16")
COMPILED = dataclasses.replace(CONFIG, compile="on")
UNDISTURBED = [
    ("zero0.json", CONFIG),
    ("zero2.json", BF16),
    ("zero3.json", CONFIG),
    ("zero3_offload.json", BF16),
]
RUNS_OUT = [
    ("zero0.json", CONFIG, "forward"),
    ("zero0.json", BF16, "backward"),
    ("zero1.json", CONFIG, "backward"),
    ("zero2.json", BF16, "forward"),
    ("zero2.json", BF16, "backward"),
    ("zero2.json", COMPILED, "forward"),
]
NUM_LAYERS = 2


def _planned(num_layers: int, by_layer: float = 1e6) -> list[PlannedMemory]:
    """What a plan may say of none to all layers recomputed."""
    counts = range(num_layers + 1)
    return [PlannedMemory(Recomputation(count), 1e9 - by_layer * count) for count in counts]


def _largest(config: Any) -> Any:
    source = BatchSource(examples(), config, Dealer(config, 256, distributed.rank(), 2))
    batch = source.largest()
    assert batch.input_ids.shape == (config.micro_batch, 48)  # of 43 and less, in multiples of 8
    assert batch.num_tokens == config.micro_batch * int(source.examples.lengths.max())
    return batch


def _three_steps(engine: Engine, config: Any) -> tuple[list[Any], Any]:
    results = [take_step(engine, step, config) for step in range(3)]
    assert engine.bytes_to_come == 0
    deltas = engine.gather_state().deltas
    engine.close()
    return results, deltas


def _assert_equal(one: Any, other: Any) -> None:
    assert one[0] == other[0]
    for name, tensors in one[1].items():
        for key, value in tensors.items():
            assert torch.equal(value, other[1][name][key]), (name, key)


def _check_untouched(rank: int, folder: Path, ds_file: str, config: Any) -> None:
    undisturbed = _three_steps(build(folder, ds_file, config), config)
    engine = build(folder, ds_file, config)
    elements = sum(getattr(d, "ds_numel", d.numel()) for d in engine.deltas.values())
    share = 2 if engine.stage else 1
    assert engine.bytes_to_come == pytest.approx(2 * 4 * elements / share, rel=0.02)
    assert fit_by_trial(engine, _largest(config), _planned(0)) == Recomputation(0)
    assert all(delta.grad is None for delta in engine.deltas.values())
    _assert_equal(undisturbed, _three_steps(engine, config))


def test_a_trial_changes_no_number_of_the_run(tmp_path: Path):
    folder = save_model(tmp_path / "model")
    run_distributed(each_case, 2, tmp_path, _check_untouched, folder, UNDISTURBED)


class _RunsOut(torch.autograd.Function):
    """Has no memory in the forward or in the backward."""

    @staticmethod
    def forward(context: Any, hidden: torch.Tensor, where: str) -> torch.Tensor:
        context.where = where
        if where == "forward":
            raise torch.OutOfMemoryError("as a GPU's allocator says")
        return hidden.clone()

    @staticmethod
    def backward(context: Any, *grads: Any) -> Any:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory")


def _run_out(engine: Engine, where: str) -> Any:
    """Let a rank have no memory in its second decoder layer, unless that is recomputed."""

    def hook(layer: Any, args: Any) -> Any:
        if layer.gradient_checkpointing or not torch.is_grad_enabled():
            return None
        return (_RunsOut.apply(args[0], where), *args[1:])

    return decoder_layers(engine.module)[1].register_forward_pre_hook(hook)


def _check_recovered(rank: int, folder: Path, ds_file: str, config: Any, where: str) -> None:
    engine = build(folder, ds_file, dataclasses.replace(config, recompute=True))
    recomputed = _three_steps(engine, config)
    engine = build(folder, ds_file, config)
    if rank == 1:
        _run_out(engine, where)
    found = fit_by_trial(engine, _largest(config), _planned(NUM_LAYERS))
    assert found == Recomputation(NUM_LAYERS)
    assert [layer.gradient_checkpointing for layer in decoder_layers(engine.module)] == [True] * 2
    _assert_equal(recomputed, _three_steps(engine, config))


def test_where_one_rank_runs_out_all_recompute_more(tmp_path: Path):
    """A choice that a plan thinks a little smaller is not taken, as it may not do either."""
    folder = save_model(tmp_path / "model")
    run_distributed(each_case, 2, tmp_path, _check_recovered, folder, RUNS_OUT)


LONG = dataclasses.replace(CONFIG, max_length=512)
MANY = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 8}
M_MMAP_THRESHOLD = -3
"""Of glibc's mallopt: blocks from this size on go back to the system when they are freed."""


def _check_corrected(rank: int, folder: Path) -> None:
    """Peaks are what the system says of a rank; one has less to take than the other."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 17)
    engine = build(folder, "zero2.json", LONG)
    batch = Dealer(LONG, 256, rank, 2).largest(LONG.max_length)

    def peak(num_layers: int) -> float:
        recompute_layers(engine.module, Recomputation(num_layers), reentrant=False)
        with engine.memory.measuring() as peak_bytes:
            assert engine.try_micro_step(batch)
            return peak_bytes()

    def fitted(first: int, limit: float, saved_by_layer: float) -> int:
        own_limit = limit if rank == 1 else 2 * limit
        choices = _planned(8, saved_by_layer)[first:]
        return fit_by_trial(engine, batch, choices, own_limit).num_layers

    peak(1)  # what libraries keep from their first call on
    rows = distributed.gather_floats([peak(1), peak(8)], "cpu")
    one, all_of_them = max(rows)
    by_layer = (one - all_of_them) / 7
    for layer in decoder_layers(engine.module):
        layer.gradient_checkpointing = False
    # A plan that thinks twice as much of a layer tries again until it fits.
    assert fitted(0, one - 2.5 * by_layer, 2 * by_layer) == 4
    assert fitted(4, one - 4.5 * by_layer, by_layer) == 6
    assert fitted(6, one - 4.5 * by_layer, by_layer) == 6
    with pytest.raises(UserError, match="8 of 8 decoder layers recomputed, which takes 0"):
        fitted(6, one - 8.5 * by_layer, by_layer)


def test_as_many_layers_are_recomputed_as_the_rank_with_least_memory_needs(tmp_path: Path):
    folder = save_model(tmp_path / "model", max_position_embeddings=512, **MANY)
    run_distributed(_check_corrected, 2, tmp_path, folder)


def _check_given_up(rank: int, folder: Path, ds_file: str) -> None:
    engine = build(folder, ds_file, CONFIG)
    _run_out(engine, "forward")
    with pytest.raises(UserError, match="micro step must fit into memory; got none for one of 2 x"):
        fit_by_trial(engine, _largest(CONFIG), _planned(NUM_LAYERS))


def test_under_zero_3_a_rank_without_memory_ends_the_run_with_a_repair(tmp_path: Path):
    folder = save_model(tmp_path / "model")
    run_distributed(_check_given_up, 2, tmp_path, folder, "zero3.json")


def _gpus(machines: Any) -> Gpus:
    return Gpus("NVIDIA H100 80GB HBM3", 80 * 10**9, 0, len(machines), len(machines))


def _train(folder: Path, name: str, limits: list[float], **changes: Any) -> tuple[Any, Any]:
    """Train as if the ranks had GPUs; return what is recorded of it, and its losses."""
    left = iter([*limits, *[1e12] * 2])
    run_config = RunConfig(
        model=str(folder / "model"),
        data=(str(folder / "pairs.jsonl"),),
        output=str(folder / name),
        num_blocks="4",
        global_batch=4,
        max_steps=2,
        precision="fp32",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diablo_ds.training.memory_choice.find_gpus", _gpus)
        patch.setattr(DeviceMemory, "limit", property(lambda memory: next(left)))
        train(dataclasses.replace(run_config, **changes), DS_CONFIGS / "zero2.json")
    files = RunFolder(folder / name)
    points = [json.loads(line) for line in files.metrics.read_text().splitlines()]
    losses = [point["loss"] for point in points if "loss" in point]
    return load_run_config(files.run_config), losses


def _check_run(rank: int, folder: Path) -> None:
    planned, losses = _train(folder, "planned", [])
    assert (planned.recompute, planned.micro_batch) == (False, 4)
    corrected, same_losses = _train(folder, "corrected", [1.0])
    assert dataclasses.replace(planned, output="", recompute=True) == dataclasses.replace(
        corrected, output=""
    )
    assert same_losses == losses
    # What a run has had is not tried again.
    resumed, more = _train(folder, "corrected", [0.0] * 9, max_steps=3)
    assert (resumed.recompute, more[:2], len(more)) == (True, losses, 3)
    given, _ = _train(folder, "given", [], recompute=True)
    assert given.recompute
    with pytest.raises(UserError, match="0 of 2 decoder layers recomputed, which takes"):
        _train(folder, "refused", [0.0], recompute=False)


def test_a_run_records_what_its_trial_made_of_the_plan(tmp_path: Path):
    save_model(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl")
    run_distributed(_check_run, 1, tmp_path, tmp_path)
