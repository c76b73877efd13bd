"""The methods that are compared, as one rank trains with them; started by `benchmarks.ranks`.

Every method gets the same frozen model, random tokens and number of trainable parameters.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.ranks import peak_memory, rank_main, reset_peak_memory
from diablo_ds.adapter.paths import DELTA_PATHS
from diablo_ds.adapter.targets import resolve_num_blocks, select_targets
from diablo_ds.config.choices import DS_CONFIGS
from diablo_ds.config.run import RunConfig
from diablo_ds.data.batches import MicroBatch
from diablo_ds.model.architecture import DTYPES, build_meta_model, load_model_config
from diablo_ds.model.base import read_base
from diablo_ds.model.loss_head import install_loss_head, loss_of
from diablo_ds.model.recomputation import Recomputation, recompute_layers
from diablo_ds.ranks import distributed
from diablo_ds.training.building import attach_deltas, design_model, load_model
from diablo_ds.training.step import train_step
from diablo_ds.zero.ds_config import load_ds_config
from diablo_ds.zero.joining import init_process_group
from diablo_ds.zero.loading import load_base
from diablo_ds.zero.start import start_engine

WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Settings:
    """One measurement."""

    method: str
    """frozen, a delta path, lora, dora or full."""
    model: str
    stage: int = 3
    recomputation: bool = False
    micro_batch: int = 2
    length: int = 256
    num_blocks: str = "64"
    num_steps: int = 7
    precision: str = "bf16"


def measure(values: dict[str, Any]) -> dict[str, Any]:
    """Train for a few steps and return seconds by step and peak memory in bytes."""
    settings = Settings(**values)
    build = {"frozen": _frozen_steps, **dict.fromkeys(DELTA_PATHS, _diablo_steps)}.get(
        settings.method
    )
    if build is None:
        seconds, num_trainable = _trainer_steps(settings)
    else:
        take_step, num_trainable = build(settings)
        seconds = []
        for index in range(WARM_UP_STEPS + settings.num_steps):
            if index == WARM_UP_STEPS:
                reset_peak_memory()
            seconds.append(_timed(take_step))
    return {
        "step_s": seconds[WARM_UP_STEPS:],
        "memory_bytes": peak_memory(),
        "trainable": num_trainable,
    }


def _timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _tokens(settings: Settings, vocab_size: int, count: int) -> torch.Tensor:
    """Random tokens ``[count, length]``, others on each rank."""
    generator = torch.Generator().manual_seed(distributed.rank())
    return torch.randint(vocab_size, (count, settings.length), generator=generator)


# --- the least that any method does --------------------------------------------------------------


def _frozen_steps(settings: Settings) -> tuple[Callable[[], object], int]:
    """Forward and backward to the inputs through the frozen base, loss included, on each rank
    alone: no adapter, no optimizer, no communication.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_base(Path(settings.model), settings.precision).to(device).requires_grad_(False)
    if settings.recomputation:
        recompute_layers(model, Recomputation(_num_layers(model)), reentrant=False)
    model.enable_input_require_grads()
    install_loss_head(model, build_meta_model(model.config))
    ids = _tokens(settings, model.config.get_text_config().vocab_size, settings.micro_batch)
    batch = MicroBatch(ids, ids, None, ids.numel())
    return lambda: loss_of(model, batch).backward(), 0


def _num_layers(model: Any) -> int:
    return int(model.config.get_text_config().num_hidden_layers)


# --- ours ----------------------------------------------------------------------------------------


def _run_config(settings: Settings) -> RunConfig:
    return RunConfig(
        model=settings.model,
        num_blocks=settings.num_blocks,
        delta_path=settings.method,
        micro_batch=settings.micro_batch,
        global_batch=settings.micro_batch * distributed.world_size(),
        max_steps=1,
        max_length=settings.length,
        precision=settings.precision,
        recompute=settings.recomputation,
    )


def _diablo_steps(settings: Settings) -> tuple[Callable[[], object], int]:
    """What `diablo-ds train` does in a step."""
    device = init_process_group()
    run_config, file = _run_config(settings), DS_CONFIGS / f"zero{settings.stage}.json"
    base = read_base(Path(settings.model))
    design = design_model(run_config, base.shapes, load_ds_config(file), file, device.type)
    built = attach_deltas(design, load_model(design, base), device)
    num_trainable = sum(delta.numel() for delta in built.deltas.values())
    engine = start_engine(built.model, built.deltas, run_config, design.ds_config)
    vocab_size = base.model_config.get_text_config().vocab_size
    ids = _tokens(settings, vocab_size, settings.micro_batch)
    batch = MicroBatch(ids, ids, None, ids.numel())
    return lambda: train_step(engine, [batch], 1e-4), num_trainable


# --- the peer ------------------------------------------------------------------------------------


def trainer_config(stage: int) -> dict[str, Any]:
    """The DeepSpeed config that transformers' documentation suggests."""
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
    }
    if stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_max_live_parameters": 1e9,
            "stage3_max_reuse_distance": 1e9,
        }
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "zero_allow_untested_optimizer": True,
    }


def _trainer_steps(settings: Settings) -> tuple[list[float], int]:
    """Hugging Face Trainer with PEFT's LoRA or DoRA, or with every parameter, under DeepSpeed."""
    import transformers

    init_process_group()
    # Before the Trainer's arguments, under which transformers partitions every model it builds.
    shapes = build_meta_model(load_model_config(Path(settings.model)))
    num_steps = WARM_UP_STEPS + settings.num_steps
    unused = tempfile.TemporaryDirectory(prefix="diablo_ds-")
    arguments = transformers.TrainingArguments(
        output_dir=unused.name,
        per_device_train_batch_size=settings.micro_batch,
        max_steps=num_steps,
        learning_rate=1e-4,
        bf16=settings.precision == "bf16",
        recompute=settings.recomputation,
        deepspeed=trainer_config(settings.stage),
        use_cpu=not torch.cuda.is_available(),
        optim="adamw_torch",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        settings.model, dtype=DTYPES[settings.precision]
    )
    if settings.method != "full":
        model = with_lora(model, shapes, settings.num_blocks, use_dora=settings.method == "dora")
    num_trainable = sum(
        getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad
    )
    vocab_size = model.config.get_text_config().vocab_size
    ids = _tokens(settings, vocab_size, num_steps * settings.micro_batch * distributed.world_size())
    rows = [{"input_ids": row, "labels": row} for row in ids]
    clock = step_clock(WARM_UP_STEPS)
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=rows, callbacks=[clock]
    )
    trainer.train()
    return clock.seconds, num_trainable


def step_clock(warm_up_steps: int) -> Any:
    """Return a Trainer callback that notes the seconds of each step, and resets the peak memory."""
    import transformers

    class StepClock(transformers.TrainerCallback):  # type: ignore[misc]
        """Notes how long each step takes, from the end of the one before."""

        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.last = 0.0

        def on_train_begin(self, *args: Any, **options: Any) -> None:
            self.last = time.perf_counter()

        def on_step_end(self, *args: Any, **options: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            now = time.perf_counter()
            self.seconds.append(now - self.last)
            self.last = now
            if len(self.seconds) == warm_up_steps:
                reset_peak_memory()

    return StepClock()


def with_lora(model: Any, shapes: Any, num_blocks: str, *, use_dora: bool = False) -> Any:
    """Attach LoRA to the same layers, at the rank that trains about as many parameters."""
    import peft

    targets = select_targets(shapes, (), model_type=model.config.model_type)
    counts = resolve_num_blocks(targets, num_blocks)
    wanted = sum(
        targets[name].in_features * targets[name].out_features // count
        for name, count in counts.items()
    )
    per_rank = sum(layer.in_features + layer.out_features for layer in targets.values())
    names = sorted({name.rpartition(".")[2] for name in targets})
    lora = peft.LoraConfig(
        r=max(1, round(wanted / per_rank)),
        target_modules=names,
        use_dora=use_dora,
        task_type="CAUSAL_LM",
    )
    model.enable_input_require_grads()
    return peft.get_peft_model(model, lora)


if __name__ == "__main__":
    rank_main(measure)
