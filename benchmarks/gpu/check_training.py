"""Twenty steps of this trainer on the device against a plain PyTorch loop in fp32 on the CPU."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from diablo_ds.adapter.attach import attach
from diablo_ds.config.choices import DS_CONFIGS
from diablo_ds.config.run import RunConfig
from diablo_ds.data.batches import MicroBatch
from diablo_ds.model.architecture import build_meta_model, build_model
from diablo_ds.model.deltas import choose_num_blocks
from diablo_ds.model.published import find_model_config
from diablo_ds.model.shape import Shape
from diablo_ds.training.building import attach_deltas, design_model
from diablo_ds.training.step import train_step
from diablo_ds.zero.ds_config import load_ds_config
from diablo_ds.zero.joining import import_deepspeed, init_process_group
from diablo_ds.zero.start import start_engine

NUM_STEPS, _NUM_BATCHES = 20, 4
_MODEL = "smollm2-135m"
_SHAPES = {
    "full": Shape(),
    "tiny": Shape(
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
    ),
}
_LENGTHS = {"full": 128, "tiny": 16}
_COUNTS = {"full": "64", "tiny": "16"}
_LEARNING_RATE = 2e-3
BOUND = 0.01
"""Nats by which a step's mean loss may differ. A logit in bf16 is off by up to 2^-8 of itself,
which the mean over tokens evens out; updates follow gradients that are off by 1 to 2 %, so that
what is learned, a tenth of a nat and more, differs by about as much."""


def check_steps(scale: str, stage: int) -> dict[str, Any]:
    """Return how far losses on the device are from the CPU's, at most and on average.

    Args:
        scale: "full" or "tiny".
        stage: ZeRO stage.
    """
    expected, cpu_s = _cpu_losses(scale)
    start = time.perf_counter()
    losses = _engine_losses(scale, stage)
    device_s = time.perf_counter() - start
    # The first batch of all, and the last time that it comes.
    learned = expected[0] - expected[(NUM_STEPS - 1) // _NUM_BATCHES * _NUM_BATCHES]
    apart = [abs(one - other) for one, other in zip(losses, expected, strict=True)]
    return {
        "largest_difference": max(apart),
        "mean_difference": sum(apart) / len(apart),
        "bound": BOUND,
        "losses": losses,
        "cpu_losses": expected,
        "cpu_s": cpu_s,
        "device_s": device_s,
        "learned": learned,
        # Where nothing were learned, following it would say nothing.
        "passed": max(apart) <= BOUND and learned > 4 * BOUND,
    }


def _batches(config: Any, scale: str) -> list[torch.Tensor]:
    """Return the random tokens of each step, ``[2, length]``: a few batches, again and again."""
    generator = torch.Generator().manual_seed(1)
    shape = (_NUM_BATCHES, 2, _LENGTHS[scale])
    ids = torch.randint(config.vocab_size, shape, generator=generator)
    return [ids[step % _NUM_BATCHES] for step in range(NUM_STEPS)]


def _model(config: Any) -> Any:
    """Return a random model on the CPU whose weights bf16 holds exactly, in fp32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(config, torch.float32)
    model.config.use_cache = False
    return model.bfloat16().float().train()


def _config(scale: str) -> Any:
    config, _ = find_model_config(_MODEL, _SHAPES[scale], _LENGTHS[scale])
    return config


def _run_config(scale: str) -> RunConfig:
    return RunConfig(
        micro_batch=2,
        global_batch=2,
        max_steps=NUM_STEPS,
        max_length=_LENGTHS[scale],
        precision="bf16",
        delta_path="fused",
        recompute=False,
        num_blocks=_COUNTS[scale],
        learning_rate=_LEARNING_RATE,
    )


@lru_cache(maxsize=1)
def _cpu_losses(scale: str) -> tuple[list[float], float]:
    """Return losses by step of a plain loop in fp32, and its seconds."""
    start = time.perf_counter()
    config, run = _config(scale), _run_config(scale)
    model = _model(config)
    deltas = list(attach(model, choose_num_blocks(model, run)).values())
    optimizer = torch.optim.AdamW(
        deltas, lr=_LEARNING_RATE, betas=(run.beta1, run.beta2), eps=run.epsilon, weight_decay=0.0
    )
    losses = []
    for ids in _batches(config, scale):
        logits = model(input_ids=ids).logits  # [2, length, vocab]
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(deltas, run.max_grad_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, time.perf_counter() - start


def _engine_losses(scale: str, stage: int) -> list[float]:
    """Return losses by step of this trainer's engine, in bf16 with fp32 masters."""
    device = init_process_group()
    config, run_config = _config(scale), _run_config(scale)
    file = DS_CONFIGS / f"zero{stage}.json"
    shapes = build_meta_model(config)
    design = design_model(run_config, shapes, load_ds_config(file), file, device.type)
    model = _model(config).bfloat16()
    if stage == 3:
        import_deepspeed().zero.Init(module=model, config_dict_or_path=design.ds_config)
    deltas = attach_deltas(design, model, device).deltas
    engine = start_engine(model, deltas, run_config, design.ds_config)
    losses = []
    for ids in _batches(config, scale):
        batch = MicroBatch(ids, ids, None, ids.numel())
        losses.append(train_step(engine, [batch], _LEARNING_RATE).loss)
    return losses
