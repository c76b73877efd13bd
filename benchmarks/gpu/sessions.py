"""This trainer's own step on a random model, built as a run builds it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.models import (
    Workload,
    flops_per_token,
    profiled_step,
    random_model,
    random_tokens,
    timed_steps,
)
from diablo_ds.config.choices import DS_CONFIGS
from diablo_ds.config.run import RunConfig
from diablo_ds.data.batches import MicroBatch
from diablo_ds.model.architecture import build_meta_model, decoder_layers
from diablo_ds.training.building import attach_deltas, design_model
from diablo_ds.training.step import train_step
from diablo_ds.zero.ds_config import load_ds_config
from diablo_ds.zero.joining import import_deepspeed, init_process_group
from diablo_ds.zero.start import start_engine

_DELTA_STD = 1e-3
"""Of the deltas at the start: zeros could be computed faster than other numbers."""


class Session:
    """A DeepSpeed engine with deltas on a random frozen base, ready to take steps.

    Args:
        workload: shape and batch.
        stage: ZeRO stage.
        num_blocks: as in a run config.
    """

    def __init__(self, workload: Workload, stage: int, num_blocks: str = "64") -> None:
        start = time.perf_counter()
        device = init_process_group()
        self.workload, self.config = workload, workload.config()
        run_config = RunConfig(
            micro_batch=workload.micro_batch,
            global_batch=workload.micro_batch,
            max_steps=1,
            max_length=workload.length,
            precision="bf16",
            delta_path="fused",
            recompute=True,
            num_blocks=num_blocks,
        )
        file = DS_CONFIGS / f"zero{stage}.json"
        shapes = build_meta_model(self.config)
        design = design_model(run_config, shapes, load_ds_config(file), file, device.type)
        model = random_model(self.config)
        if stage == 3:
            import_deepspeed().zero.Init(module=model, config_dict_or_path=design.ds_config)
        self.deltas: dict[str, nn.Parameter] = attach_deltas(design, model, device).deltas
        for delta in self.deltas.values():
            nn.init.normal_(delta, std=_DELTA_STD)
        self.layers: list[Any] = decoder_layers(model)
        self.recompute(False)
        self.flops = flops_per_token(model, self.config, workload.length)
        self.engine = start_engine(model, self.deltas, run_config, design.ds_config)
        self.model = model
        self.build_s = time.perf_counter() - start

    def recompute(self, wanted: bool) -> None:
        """Recompute all decoder layers in the backward pass, or none."""
        for layer in self.layers:
            layer.gradient_checkpointing = wanted

    def step_of(self, batch: MicroBatch) -> Callable[[], object]:
        """Return what takes an optimizer step on a micro batch."""
        return lambda: train_step(self.engine, [batch], 1e-4)

    def measure(
        self, *, micro_batch: int = 0, lever: bool = False, profile: bool = False
    ) -> dict[str, Any]:
        """Return what steps on random tokens take.

        Args:
            micro_batch: sequences of a step; the workload's by default.
            lever: whether fewer steps do.
            profile: whether to take one more step under the profiler.
        """
        rows = micro_batch or self.workload.micro_batch
        ids = random_tokens(self.config, rows, self.workload.length)
        take_step = self.step_of(MicroBatch(ids, ids, None, ids.numel()))
        figures = timed_steps(take_step, ids.numel(), self.flops, lever=lever)
        figures |= {
            "micro_batch": rows,
            "length": self.workload.length,
            "trainable": sum(delta.numel() for delta in self.deltas.values()),
            "build_s": self.build_s,
            "last_loss": self._loss(ids),
        }
        return figures | (profiled_step(take_step) if profile else {})

    def _loss(self, ids: torch.Tensor) -> float:
        """Return the mean loss of a step: what two settings must agree on."""
        return train_step(self.engine, [MicroBatch(ids, ids, None, ids.numel())], 0.0).loss
