"""What a user asks of a plan, beside the model's widths and what is assumed of hardware."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diablo_ds.config.batch_sizes import MOST_MICRO_BATCH
from diablo_ds.config.choices import PRECISIONS
from diablo_ds.config.setting import check_settings, setting
from diablo_ds.errors import UserError
from diablo_ds.planning.hardware import DEFAULT_DEVICE, DEFAULT_RESERVE_GB, DEVICES

DEFAULT_BLOCKS = ("64", "32", "128")
"""Block counts of a plan that names none: the first is planned, the others compared."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Settings of one plan. Field by field the same as the command's options.

    Raises:
        UserError: if a value is illegal.
    """

    model: str = setting(
        "",
        "Built-in shape, folder with config.json, or hf://owner/name; or all widths instead.",
        "model",
    )
    nodes: int = setting(1, "Nodes of the cluster.", "hardware", minimum=1)
    gpus_per_node: int = setting(8, "GPUs of each node.", "hardware", minimum=1)
    gpu: str = setting(
        DEFAULT_DEVICE,
        "GPU model, for figures that are not given.",
        "hardware",
        choices=tuple(DEVICES),
    )
    gpu_memory: float | None = setting(None, "Memory of a GPU, in GB.", "hardware", above=0)
    tflops: float | None = setting(
        None, "Peak of dense 16-bit products of a GPU, in TFLOP/s.", "hardware", above=0
    )
    memory_bandwidth: float | None = setting(
        None, "Bandwidth of a GPU's memory, in GB/s.", "hardware", above=0
    )
    inside_bandwidth: float | None = setting(
        None, "Bandwidth from one GPU to its node, one way, in GB/s.", "hardware", above=0
    )
    between_bandwidth: float | None = setting(
        None, "Bandwidth of one node's network, one way, in GB/s.", "hardware", above=0
    )
    node_memory: float = setting(1000.0, "Memory of a node, in GB.", "hardware", minimum=0)
    reserve: float = setting(
        DEFAULT_RESERVE_GB,
        "Memory of a GPU for CUDA, NCCL and the allocator's gaps, in GB.",
        "hardware",
        minimum=0,
    )
    num_blocks: tuple[str, ...] = setting(
        (),
        "Diagonal blocks; repeatable: the first is planned, the others compared.",
        "adapter",
        shown_default=", ".join(DEFAULT_BLOCKS),
    )
    targets: tuple[str, ...] = setting(
        (),
        "Target layers, as in training; repeatable.",
        "adapter",
        shown_default="by model family",
    )
    micro_batch: int | None = setting(
        None,
        "Sequences of one forward of a rank; where nothing fits, smaller ones are tried.",
        "batch",
        minimum=1,
        shown_default=f"the best up to {MOST_MICRO_BATCH} that divides the global batch",
    )
    global_batch: int | None = setting(
        None,
        "Sequences per optimizer step.",
        "batch",
        minimum=1,
        shown_default=f"one micro batch per rank; {MOST_MICRO_BATCH} per rank if that is open too",
    )
    max_length: int = setting(2048, "Tokens per sequence.", "batch", minimum=2)
    data: Path | None = setting(
        None,
        "Data to train on once: a prepared dataset, or files whose size gives a rough number of "
        "tokens. For the hours that it takes.",
        "batch",
    )
    tokens: int | None = setting(
        None, "Tokens to train on, instead of data; for the hours.", "batch", minimum=1
    )
    precision: str = setting(
        "auto",
        "Dtype of base and deltas. Auto is bf16, or fp16 on a GPU without it.",
        "memory and speed",
        choices=PRECISIONS,
    )
    output: Path | None = setting(
        None, "Folder for a DeepSpeed config, commands, tables and a scaling plot.", "run"
    )
    json: bool = setting(False, "Print JSON instead of tables.", "run")
    all: bool = setting(
        False, "Show all block counts, micro batches and layouts, and memory by kind.", "run"
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.data is not None and self.tokens is not None:
            raise UserError(
                "tokens must be counted from data or given; got both "
                f"data={self.data} and tokens={self.tokens}"
            )
