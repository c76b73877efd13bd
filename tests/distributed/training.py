"""The same tiny training in two ways: ours on real ranks, and plain PyTorch in one process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from diablo_ds.adapter.attach import attach
from diablo_ds.config.run import RunConfig
from diablo_ds.config.schedule import lr_factor
from diablo_ds.data.batch_source import BatchSource
from diablo_ds.data.batches import Dealer
from diablo_ds.data.examples import Examples
from diablo_ds.model.architecture import decoder_layers
from diablo_ds.model.base import read_base
from diablo_ds.model.compilation import compile_layers
from diablo_ds.model.deltas import choose_num_blocks
from diablo_ds.model.loss import causal_lm_loss, count_targets
from diablo_ds.ranks import distributed
from diablo_ds.training.building import attach_deltas, design_model, load_model
from diablo_ds.training.step import StepResult, train_step
from diablo_ds.zero.ds_config import load_ds_config
from diablo_ds.zero.engine import Engine
from diablo_ds.zero.joining import init_process_group
from diablo_ds.zero.loading import load_base
from diablo_ds.zero.start import start_engine
from tests.tiny import tiny_examples

DS_CONFIGS = Path(__file__).parents[2] / "ds_configs"
NUM_STEPS = 4
TRACING = "aot_eager"
"""The compiler that traces forward and backward as a run's does; the code of that takes minutes."""
CONFIG = RunConfig(
    num_blocks="4",
    micro_batch=2,
    global_batch=8,
    max_steps=NUM_STEPS,
    learning_rate=1e-2,
    warmup_steps=1,
    weight_decay=0.1,
    max_grad_norm=0.5,  # below the gradient's norm, so that clipping acts
    precision="fp32",
)


def examples() -> Examples:
    """Examples with 2 to 40 target tokens: ranks get very unequal numbers of them."""
    return tiny_examples([(f"{i}=", "ab" * (1 + (7 * i) % 20)) for i in range(24)])


def micro_batches(step: int, config: RunConfig, rank: int, world_size: int) -> list[Any]:
    """The real data path's micro batches of a step."""
    return list(BatchSource(examples(), config, Dealer(config, 256, rank, world_size)).step(step))


def take_step(engine: Engine, step: int, config: RunConfig = CONFIG) -> StepResult:
    """Train this rank's micro batches of a step, as a run does."""
    batches = micro_batches(step, config, distributed.rank(), distributed.world_size())
    return train_step(engine, batches, learning_rate(config, step))


def each_case(
    rank: int, function: Callable[..., None], folder: Path, cases: Sequence[tuple[Any, ...]]
) -> None:
    """Call a function for each case, one after another on the same ranks."""
    for case in cases:
        try:
            function(rank, folder, *case)
        except BaseException as error:
            error.add_note(f"with {case}")
            raise


def build(
    model_folder: Path,
    ds_file: str,
    config: RunConfig = CONFIG,
    *,
    changes: Mapping[str, int] = MappingProxyType({}),
    backends: Sequence[str] = (TRACING,),
    **options: Any,
) -> Engine:
    """Load the model, attach deltas and start the engine, as a run does.

    ``changes`` are to the file's ZeRO section; ``backends`` are each rank's, where layers are
    compiled; ``options`` go to `start_engine`.
    """
    device = init_process_group()
    base, file = read_base(model_folder), DS_CONFIGS / ds_file
    design = design_model(config, base.shapes, load_ds_config(file), file, device.type)
    design.ds_config["zero_optimization"].update(changes)
    built = attach_deltas(design, load_model(design, base), device)
    assert built.has_loss_head
    engine = start_engine(built.model, built.deltas, config, design.ds_config, **options)
    if config.compile == "on":
        compile_layers(built.model, backend=backends[distributed.rank() % len(backends)])
    return engine


def learning_rate(config: RunConfig, step: int) -> float:
    factor = lr_factor(config.schedule, step, num_steps=NUM_STEPS, warmup_steps=config.warmup_steps)
    return config.learning_rate * factor


def train_and_save(
    rank: int,
    model_folder: Path,
    ds_file: str,
    config: RunConfig,
    output: Path,
    backends: Sequence[str] = (TRACING,),
) -> None:
    """Train on this rank; rank 0 saves losses, norms and final deltas; checks the base."""
    engine = build(model_folder, ds_file, config, backends=backends)
    before = base_values(engine)
    results = [take_step(engine, step, config) for step in range(NUM_STEPS)]
    if config.compile == "on":
        is_compiled = backends[rank % len(backends)] == TRACING
        assert {layer.runs_compiled for layer in decoder_layers(engine.module)} == {is_compiled}
    for name, value in base_values(engine).items():
        assert torch.equal(value, before[name]), f"{name} changed"
    state = engine.gather_state()
    assert state.num_optimizer_steps == NUM_STEPS
    if rank == 0:
        masters = {name: tensors["master"] for name, tensors in state.deltas.items()}
        torch.save(masters, output.with_suffix(".pt"))
        points = [[r.loss, r.grad_norm, r.num_tokens] for r in results]
        output.with_suffix(".json").write_text(json.dumps(points))


def base_values(engine: Engine) -> dict[str, Tensor]:
    """This rank's part of each base parameter."""
    return {
        name: getattr(p, "ds_tensor", p).detach().clone()
        for name, p in engine.module.named_parameters()
        if not p.requires_grad
    }


def train_plain(
    model_folder: Path, config: RunConfig = CONFIG
) -> tuple[list[list[float]], dict[str, Tensor]]:
    """The reference: one process, no DeepSpeed, one backward over the global batch."""
    model = load_base(model_folder, config.precision).train()
    deltas = attach(model, choose_num_blocks(model, config))
    optimizer = torch.optim.AdamW(
        deltas.values(),
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        weight_decay=config.weight_decay,
    )
    points = []
    for step in range(NUM_STEPS):
        batches = micro_batches(step, config, 0, 1)
        num_targets = sum(int(count_targets(b.labels)) for b in batches)
        loss = sum(causal_lm_loss(model(**b.model_inputs()).logits, b.labels) for b in batches)
        (loss / num_targets).backward()
        norm = torch.nn.utils.clip_grad_norm_(deltas.values(), config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        optimizer.step()
        optimizer.zero_grad()
        num_tokens = sum(b.num_tokens for b in batches)
        points.append([float(loss.detach()) / num_targets, float(norm), num_tokens])
    return points, {name: delta.detach() for name, delta in deltas.items()}
