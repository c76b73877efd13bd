"""The peer: Hugging Face Trainer with PEFT's LoRA of equal size, on the same model and batch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.gpu.models import (
    STEPS,
    WARM_UP_STEPS,
    WORKLOADS,
    device,
    flops_per_token,
    random_model,
    random_tokens,
    step_figures,
)
from benchmarks.gpu.records import Case
from benchmarks.methods import step_clock, trainer_config, with_lora
from diablo_ds.model.architecture import build_meta_model
from diablo_ds.zero.joining import init_process_group


def _measure(
    kind: str,
    scale: str,
    *,
    micro_batch: int = 2,
    stage: int = 2,
    recomputed: bool = False,
    liger: bool = False,
) -> dict[str, Any]:
    import transformers

    if stage:
        init_process_group()
    workload = WORKLOADS[scale][kind]
    config = workload.config()
    num_steps = WARM_UP_STEPS + STEPS
    model = random_model(config)
    flops = flops_per_token(model, config, workload.length)
    model = with_lora(model, build_meta_model(config), "64")
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    ids = random_tokens(config, num_steps * micro_batch, workload.length)
    rows = [{"input_ids": row, "labels": row} for row in ids]
    clock = step_clock(WARM_UP_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=micro_batch,
            max_steps=num_steps,
            learning_rate=1e-4,
            bf16=True,
            gradient_checkpointing=recomputed,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            deepspeed=trainer_config(stage) if stage else None,
            use_cpu=device().type == "cpu",
            use_liger_kernel=liger,
            optim="adamw_torch",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(
            model=model, args=arguments, train_dataset=rows, callbacks=[clock]
        )
        trainer.train()
    seconds = clock.seconds[WARM_UP_STEPS:]
    figures = step_figures(seconds, micro_batch * workload.length, flops)
    lora = next(iter(model.peft_config.values()))
    return figures | {
        "micro_batch": micro_batch,
        "length": workload.length,
        "trainable": trainable,
        "rank": lora.r,
        "first_step_s": clock.seconds[0],
    }


def step_cases(scale: str) -> Iterator[Case]:
    """Yield the 8B shape under ZeRO-2: as a user starts, then what lets it fit."""
    measure = partial(_measure, "step", scale)
    yield Case("liger", partial(measure, liger=True), alone=True)
    yield Case("micro batch 1", partial(measure, micro_batch=1), alone=True)
    yield Case("as it is", measure, alone=True)
    yield Case("recomputed", partial(measure, recomputed=True), alone=True)
    yield Case("liger, no DeepSpeed", partial(measure, liger=True, stage=0), alone=True)


def slice_cases(scale: str) -> Iterator[Case]:
    """Yield the slice of the 70B shape under ZeRO-2."""
    measure = partial(_measure, "slice", scale)
    yield Case("liger", partial(measure, liger=True), alone=True)
    yield Case("as it is", measure, alone=True)
