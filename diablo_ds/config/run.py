"""The run config: every value that changes the numbers of a run.

`diablo_ds.training.resolution` chooses settings that are left open when a run starts, for its ranks
and their machines; they are in the `run.json` of the run, and stay when it continues. Memory and
communication policy (ZeRO stage, offload, buckets) is in a file of `ds_configs/`.
"""

# ruff: noqa: RUF009 - each setting is a dataclasses.field

from __future__ import annotations

import functools
from dataclasses import dataclass

from diablo_ds.config import remote_code, run_checks
from diablo_ds.config.batch_sizes import accumulation_steps
from diablo_ds.config.choices import (
    ATTENTIONS,
    COMPILE,
    DEFAULT_NUM_BLOCKS,
    DELTA_PATHS,
    PRECISIONS,
    TRACKERS,
    Schedule,
)
from diablo_ds.config.data_settings import DataSettings
from diablo_ds.config.setting import LARGEST, check_settings, setting
from diablo_ds.config.sharing import ALLOW_GROUP_WRITE, GROUP_READABLE
from diablo_ds.config.task_settings import TaskSettings

_model = functools.partial(setting, group="model")
_adapter = functools.partial(setting, group="adapter")
_batch = functools.partial(setting, group="batch")
_optimizer = functools.partial(setting, group="optimizer")
_update = functools.partial(setting, group="optimizer", on_resume="ahead")
_speed = functools.partial(setting, group="memory and speed")
_run = functools.partial(setting, group="run")


@dataclass(frozen=True, kw_only=True)
class RunConfig(DataSettings, TaskSettings):
    """Settings of one training run. Field by field the same as the options of `diablo-ds train`.

    Raises:
        UserError: if a value is out of its range.
    """

    model: str = _model(
        "default", "Base model: a folder, hf://owner/name, or default for SmolLM2-135M-Instruct."
    )
    trust_remote_code: bool = _model(False, remote_code.HELP, on_resume="free")
    base_dropout: bool | None = _model(
        None, "The base's own dropout.", is_open=True, shown_default="as the base has it"
    )
    cache_folder: str = _model(
        "",
        "Folder for the converted default model; empty for the user's cache folder.",
        on_resume="free",
    )
    init_adapter: str = _adapter(
        "",
        "Saved adapter to start from: an adapter, a checkpoint or a run folder. Targets, layers "
        "and num_blocks are the adapter's where they are not given.",
    )
    num_blocks: str = _adapter(
        "",
        "Diagonal blocks per target layer, or auto:<share> for a trainable share per layer.",
        is_open=True,
        shown_default=DEFAULT_NUM_BLOCKS,
    )
    targets: tuple[str, ...] = _adapter(
        (),
        "Target layer: a name, pattern or re:regex; repeatable.",
        shown_default="by model family",
    )
    layers: str = _adapter("", "Decoder layers that get deltas, e.g. 0-3,8; empty for all.")
    dropout: float = _adapter(
        0.0, "Dropout on the adapter's input, as a share.", minimum=0, maximum=0.99
    )
    delta_path: str = _adapter(
        "auto",
        "Add the blocks' products to the output (fused), the output to them (prefilled), or the "
        "delta to the weight (summed); triton, triton_prefilled and triton_summed are the same by "
        "kernels for GPUs. Auto is summed in fp32, else prefilled on a GPU and fused on a CPU.",
        choices=DELTA_PATHS,
        is_open=True,
    )
    micro_batch: int = _batch(
        0,
        "Sequences per forward of one rank: examples, or packs of them; 0 for the one up to 4 that "
        "divides the global batch and, by a plan, is fastest on these GPUs; on CPUs the largest.",
        minimum=0,
        is_open=True,
        on_resume="free",
    )
    micro_batch_tokens: int = _batch(
        0,
        "Tokens of a micro batch, padding included, instead of micro_batch; 0 for off.",
        minimum=0,
        on_resume="free",
    )
    global_batch: int = _batch(
        0,
        "Sequences per optimizer step over all ranks; 0 for the smallest multiple of micro batch "
        "times ranks that is at least 8.",
        minimum=0,
        is_open=True,
    )
    num_epochs: float = _batch(
        1.0,
        "Passes over the training data; max_steps overrides it.",
        minimum=0,
        maximum=LARGEST,
        on_resume="ahead",
    )
    max_steps: int = _batch(
        0, "Optimizer steps; 0 derives them from num_epochs.", minimum=0, on_resume="ahead"
    )
    learning_rate: float = _update(
        0.0,
        "Peak learning rate of AdamW; auto follows a rule by the width of the blocks.",
        minimum=0,
        is_open=True,
    )
    schedule: Schedule = _update("linear", "Learning-rate schedule after warm-up.")
    warmup_steps: int = _update(3, "Steps of linear warm-up.", minimum=0)
    weight_decay: float = _update(0.0, "AdamW's decoupled weight decay.", minimum=0)
    beta1: float = _optimizer(0.9, "AdamW's decay of the first moment.", minimum=0, maximum=1)
    beta2: float = _optimizer(0.999, "AdamW's decay of the second moment.", minimum=0, maximum=1)
    epsilon: float = _optimizer(1e-8, "AdamW's epsilon.", minimum=0)
    max_grad_norm: float = _update(
        1.0, "Gradient norm to clip to, over all deltas; 0 for no clipping.", minimum=0
    )
    precision: str = _speed(
        "auto",
        "Dtype of base and deltas; the optimizer is fp32. Auto is bf16, or fp16 on a GPU that has "
        "no bf16, or fp32 on a CPU where that is faster.",
        choices=PRECISIONS,
        is_open=True,
    )
    attention: str = _speed(
        "auto",
        "Attention kernels; auto takes FlashAttention where it is installed, else PyTorch's own, "
        "for packed rows on a GPU the one that needs no mask (varlen).",
        choices=ATTENTIONS,
        is_open=True,
        on_resume="free",
    )
    compile: str = _speed(
        "auto",
        "Compile decoder layers and loss with torch.compile; auto does so on a GPU.",
        choices=COMPILE,
        is_open=True,
        on_resume="free",
    )
    recompute: bool | None = _speed(
        None,
        "Recompute activations in the backward (gradient checkpointing).",
        shown_default="as few layers as fit; without a GPU from 1 billion parameters on",
        on_resume="free",
    )
    reentrant: bool = _speed(False, "Recompute in the re-entrant form.", on_resume="free")
    recomputed_layers: int = _speed(
        0,
        "Decoder layers to recompute, spread evenly; 0 for all of them.",
        minimum=0,
        on_resume="free",
    )
    keep_attention: bool = _speed(
        False,
        "Keep the attention output of recomputed layers: more memory, less to recompute.",
        on_resume="free",
    )
    memory_budget: float = _speed(
        0.0,
        "GB (1e9 bytes) that a rank may take: recompute as few layers as fit in it; 0 for off.",
        minimum=0,
        on_resume="free",
    )
    pad_to_multiple_of: int = _speed(
        0,
        "Tokens: the width of a micro batch is rounded up to a multiple of it, at most to that of "
        "max_length; auto is 64 on a CPU, where each further width takes memory, else 8.",
        minimum=0,
        is_open=True,
        on_resume="free",
    )
    output: str = _run("", "Run folder; empty makes a new one under runs/.", on_resume="free")
    allow_group_write: bool = _run(False, ALLOW_GROUP_WRITE, on_resume="free")
    group_readable: bool = _run(False, GROUP_READABLE, on_resume="free")
    seed: int = _run(0, "Seed of data order and dropout.", minimum=0, maximum=2**63 - 1)
    log_every: int = _run(1, "Steps between TensorBoard points.", minimum=1, on_resume="free")
    track_delta_norms: bool = _run(
        False,
        "Record the norm of each delta at each evaluation, a curve for each, beside their picture.",
        on_resume="free",
    )
    eval_every: int = _run(
        0,
        "Steps between held-out evaluations; 0 for a quarter of the run.",
        minimum=0,
        on_resume="free",
    )
    save_every: int = _run(
        0,
        "Steps between checkpoints; 0 for a quarter of the run.",
        minimum=0,
        on_resume="free",
    )
    keep_last: int = _run(2, "Checkpoints to keep.", minimum=1, on_resume="free")
    keep_best: bool = _run(
        False,
        "Keep the checkpoint with the lowest held-out loss too; it becomes the run's adapter.",
        on_resume="free",
    )
    patience: int = _run(
        0,
        "Stop after this many held-out evaluations in a row without a lower loss; 0 for never.",
        minimum=0,
        on_resume="free",
    )
    report_to: tuple[str, ...] = _run(
        (),
        "Tracker beside TensorBoard; on this machine unless its own variables name a server; "
        "repeatable.",
        choices=TRACKERS,
        on_resume="free",
    )
    profile_steps: str = _run(
        "",
        "Steps to trace on rank 0, such as 10-12, at most 20; the trace is in the run folder's "
        "profile.",
        on_resume="free",
    )
    hang_timeout: int = _run(
        600,
        "Seconds without progress after which a rank counts as hung; 0 for never.",
        minimum=0,
        on_resume="free",
    )

    def __post_init__(self) -> None:
        check_settings(self)
        run_checks.check_together(self)

    def accumulation_steps(self, world_size: int) -> int:
        """Return the micro batches per rank and step, so that the batch equation holds.

        With `micro_batch_tokens` it varies from step to step, and this is 1.

        Raises:
            UserError: if micro batch times world size does not divide the global batch.
        """
        if self.micro_batch_tokens:
            return 1
        return accumulation_steps(self.global_batch, self.micro_batch, world_size)

    def batch_equation(self, world_size: int) -> str:
        """Return the batch arithmetic as a line of text."""
        if self.micro_batch_tokens:
            return (
                f"global batch {self.global_batch} in micro batches of up to "
                f"{self.micro_batch_tokens:,} tokens, world size {world_size}"
            )
        return (
            f"global batch {self.global_batch} = micro batch {self.micro_batch} x accumulation "
            f"{self.accumulation_steps(world_size)} x world size {world_size}"
        )

    def num_steps(self, per_pass: int, lag: int = 0) -> int:
        """Return the optimizer steps of the run; the last one may hold fewer sequences.

        Args:
            per_pass: sequences in one pass over the data.
            lag: sequences that an earlier last step had fewer than a global batch.
        """
        if self.max_steps:
            return self.max_steps
        return max(1, -(-(self.num_sequences(per_pass) + lag) // self.global_batch))

    def num_sequences(self, per_pass: int, lag: int = 0) -> int:
        """Return how many sequences the run sees, counting repeats."""
        if self.max_steps:
            return self.max_steps * self.global_batch - lag
        return max(1, round(self.num_epochs * per_pass))
