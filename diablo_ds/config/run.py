"""The run config: every value that changes the numbers of a run, checked, and saved as JSON.

Some settings may be left open: `resolution.py` chooses them when a run starts, for its ranks and
their machines. What was chosen is in the `run.json` of a run, and stays when the run goes on.

Memory and communication policy (ZeRO stage, offload, buckets) is not here but in a file of
`ds_configs/`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diablo_ds.config.batch_sizes import accumulation_steps
from diablo_ds.config.choices import (
    ATTENTIONS,
    AUTO,
    CONTROL_TOKENS,
    CORPORA,
    DATA_ORDERS,
    OVERLONG,
    PRECISIONS,
    SCHEDULES,
    TEMPLATES,
    check_control_tokens,
)
from diablo_ds.config.setting import LARGEST, check_settings, setting
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json, write_json
from diablo_ds.files.strict_json import key_list

OPEN_SETTINGS: dict[str, Any] = {
    "precision": "auto",
    "delta_path": "auto",
    "attention": "auto",
    "compile": "auto",
    "micro_batch": 0,
    "global_batch": 0,
    "base_dropout": None,
    "data_order": "auto",
}
"""Settings that may be left open, by the value that says so."""
_FORMER_MICRO_BATCH = 4
"""The default that earlier versions wrote beside `micro_batch_tokens`, where it had no effect."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of one training run. Field by field the same as the options of `diablo-ds train`.

    Raises:
        UserError: if a value is out of its range.
    """

    model: str = setting(
        "default", "Base model: a folder, a hub name, or default for SmolLM2-135M-Instruct."
    )
    data: str = setting(
        "default",
        "Training data: a prepared dataset, raw files (JSON, JSONL, CSV, parquet), or default "
        "for the shipped slice of GSM8K.",
    )
    corpus: str = setting(
        "",
        "Family of raw files; empty for jsonl: prompt and completion, messages or text.",
        choices=("", *CORPORA),
    )
    template: str = setting(
        "auto",
        "Prompt template of raw files; auto takes the corpus's own.",
        choices=("auto", *TEMPLATES),
    )
    control_tokens: str = setting(
        AUTO,
        "Control tokens in raw files: read, text, or auto for read where a row begins or ends so.",
        choices=CONTROL_TOKENS,
    )
    stream: bool = setting(
        False, "Tokenise raw files while training, in bounded memory; needs max_steps."
    )
    heldout_data: str = setting(
        "", "Held-out data in the same form; empty takes the data's own held-out part or a share."
    )
    heldout_share: float = setting(
        0.05, "Share of the data held out where it has no part of its own.", minimum=0, maximum=0.5
    )
    allow_changed_data: bool = setting(
        False, "Resume although the data changed, with a new pass over them as they are now."
    )
    output: str = setting("", "Run folder; empty makes a new one under runs/.")
    cache_folder: str = setting(
        "", "Folder for the converted default model; empty for the user's cache folder."
    )
    shared_folders: bool = setting(
        False,
        "Use folders for output, logs, cache and compiled ops that other users can write, or that "
        "are somebody else's.",
    )
    num_blocks: str = setting(
        "64", "Diagonal blocks per target layer, or auto:<share> for a trainable share per layer."
    )
    targets: tuple[str, ...] = setting(
        (), "Target layer: a name, pattern or re:regex; repeatable. Default by model family."
    )
    layers: str = setting("", "Decoder layers that get deltas, e.g. 0-3,8; empty for all.")
    dropout: float = setting(
        0.0, "Dropout on the adapter's input, as a share.", minimum=0, maximum=0.99
    )
    base_dropout: bool | None = setting(None, "The base's own dropout. Default: as it has it.")
    delta_path: str = setting(
        "auto",
        "Add the blocks' products to the output (fused), the output to them (prefilled), or the "
        "delta to the weight (merged); triton, triton_prefilled and triton_merged are the same by "
        "kernels for GPUs. Auto is merged in fp32, else prefilled on a GPU "
        "and fused on a CPU.",
        choices=(
            *("auto", "fused", "merged", "prefilled"),
            *("triton", "triton_merged", "triton_prefilled"),
        ),
    )
    attention: str = setting(
        "auto",
        "Attention kernels; auto takes FlashAttention where it is installed, else PyTorch's own, "
        "for packed rows on a GPU the one that needs no mask (varlen).",
        choices=("auto", *ATTENTIONS),
    )
    compile: str = setting(
        "auto",
        "Compile decoder layers and loss with torch.compile; auto does so on a GPU.",
        choices=("auto", "on", "off"),
    )
    max_length: int = setting(512, "Longest example, in tokens.", minimum=2)
    overlong: str = setting(
        "drop", "What to do with longer examples; error stops the run.", choices=OVERLONG
    )
    packing: bool = setting(
        False, "Put several examples into one sequence of max_length; attention stays in each."
    )
    group_by_length: bool = setting(
        False, "Make each global batch of examples of similar length, for less padding."
    )
    micro_batch: int = setting(
        0,
        "Sequences that one rank puts through one forward: examples, or packs; 0 for the most up "
        "to 4 that divide the global batch.",
        minimum=0,
    )
    micro_batch_tokens: int = setting(
        0,
        "Tokens of a micro batch, padding included, instead of micro_batch; 0 for off.",
        minimum=0,
    )
    global_batch: int = setting(
        0,
        "Sequences per optimizer step over all ranks; 0 for the least from 8 on that is a multiple "
        "of micro batch times ranks.",
        minimum=0,
    )
    num_epochs: float = setting(1.0, "Passes over the training data.", minimum=0, maximum=LARGEST)
    max_steps: int = setting(
        0, "Optimizer steps; 0 derives them from the number of epochs.", minimum=0
    )
    learning_rate: float = setting(2e-3, "Peak learning rate of AdamW.", minimum=0)
    schedule: str = setting("linear", "Learning-rate schedule after warm-up.", choices=SCHEDULES)
    warmup_steps: int = setting(3, "Steps of linear warm-up.", minimum=0)
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay.", minimum=0)
    beta1: float = setting(0.9, "AdamW's decay of the first moment.", minimum=0, maximum=1)
    beta2: float = setting(0.999, "AdamW's decay of the second moment.", minimum=0, maximum=1)
    epsilon: float = setting(1e-8, "AdamW's epsilon.", minimum=0)
    max_grad_norm: float = setting(
        1.0, "Gradient norm to clip to, over all deltas; 0 for no clipping.", minimum=0
    )
    precision: str = setting(
        "auto",
        "Dtype of base and deltas; the optimizer is fp32. Auto is bf16, or fp16 on a GPU that has "
        "no bf16, or fp32 on a CPU where that is faster.",
        choices=("auto", *PRECISIONS),
    )
    gradient_checkpointing: bool | None = setting(
        None, "Recompute activations in backward. Default: from 1 billion parameters on."
    )
    reentrant: bool = setting(False, "Use the re-entrant form of gradient checkpointing.")
    checkpointed_layers: int = setting(
        0, "Decoder layers to recompute, spread evenly; 0 for all of them.", minimum=0
    )
    keep_attention: bool = setting(
        False, "Keep the attention's output of recomputed layers: more memory, less to recompute."
    )
    memory_budget: float = setting(
        0.0,
        "Memory that a rank may take, in GB (1e9 bytes): as few decoder layers are recomputed as "
        "that allows; 0 for off.",
        minimum=0,
    )
    seed: int = setting(0, "Seed of data order and dropout.", minimum=0, maximum=2**63 - 1)
    data_order: str = setting(
        "auto",
        "How the seed orders each pass: hashed, or seed-plus-epoch as earlier versions did; auto "
        "is hashed, and what the run has on resume.",
        choices=("auto", *DATA_ORDERS),
    )
    log_every: int = setting(1, "Steps between TensorBoard points.", minimum=1)
    eval_every: int = setting(
        0, "Steps between held-out evaluations; 0 for a quarter of the run.", minimum=0
    )
    save_every: int = setting(
        0, "Steps between checkpoints; 0 for a quarter of the run.", minimum=0
    )
    keep_last: int = setting(2, "Checkpoints to keep.", minimum=1)
    hang_timeout: int = setting(
        600,
        "Seconds without progress after which a rank counts as hung; 0 for never.",
        minimum=0,
    )

    def __post_init__(self) -> None:
        check_settings(self)
        self._check_pairs()

    def _check_pairs(self) -> None:
        if not self.max_steps and not self.num_epochs:
            raise UserError("max_steps or num_epochs must be above 0; got 0 for both")
        self._check_checkpointing()
        if self.delta_path in ("merged", "triton_merged") and self.dropout:
            raise UserError(
                f"delta_path {self.delta_path!r} needs dropout=0, since the adapter sees the "
                f"base's input; got dropout={self.dropout}; use 'fused'"
            )
        self._check_batching()
        self._check_stream()
        check_control_tokens(self.control_tokens, self.template)
        for name in ("corpus", "template", "control_tokens", "heldout_data"):
            value = getattr(self, name)
            if self.data == "default" and value != getattr(type(self), name):
                raise UserError(
                    f"{name} has no effect on the default data, which has a form and a held-out "
                    f"part; got {name}={value!r}; name the training data too"
                )

    def _check_checkpointing(self) -> None:
        for name in ("reentrant", "checkpointed_layers", "keep_attention"):
            value = getattr(self, name)
            if value and self.gradient_checkpointing is False:
                raise UserError(
                    f"{name} needs gradient checkpointing; got {name}={value}, "
                    "gradient_checkpointing=False"
                )
            if value and self.memory_budget and name != "reentrant":
                raise UserError(
                    f"memory_budget chooses {name} by itself; got {name}={value}, "
                    f"memory_budget={self.memory_budget}; give one of them"
                )
        if self.keep_attention and self.reentrant:
            raise UserError(
                "keep_attention needs the non-re-entrant form; got keep_attention=True, "
                "reentrant=True"
            )
        if self.memory_budget and self.gradient_checkpointing is not None:
            raise UserError(
                "memory_budget decides on gradient checkpointing; got "
                f"memory_budget={self.memory_budget}, "
                f"gradient_checkpointing={self.gradient_checkpointing}; leave one of them out"
            )

    def _check_batching(self) -> None:
        if self.packing and self.group_by_length:
            raise UserError(
                "group_by_length has no effect with packing, which leaves no padding; got both"
            )
        if self.micro_batch_tokens and self.micro_batch:
            raise UserError(
                "give micro_batch or micro_batch_tokens, not both; got "
                f"micro_batch={self.micro_batch}, micro_batch_tokens={self.micro_batch_tokens}"
            )
        if self.micro_batch_tokens and self.micro_batch_tokens < self.max_length:
            raise UserError(
                "micro_batch_tokens must hold the longest example; got "
                f"micro_batch_tokens={self.micro_batch_tokens}, max_length={self.max_length}"
            )

    def _check_stream(self) -> None:
        if not self.stream:
            return
        if self.data == "default" or not self.max_steps:
            raise UserError(
                "stream needs raw files as data, and max_steps, since their number of rows is not "
                f"known; got data={self.data!r}, max_steps={self.max_steps}"
            )
        for name in ("packing", "group_by_length", "micro_batch_tokens"):
            if getattr(self, name):
                raise UserError(
                    f"{name} needs the lengths of all examples, which a stream does not know; got "
                    f"{name}={getattr(self, name)}; prepare the data first, with diablo-ds prepare"
                )
        if self.overlong == "error":
            raise UserError("overlong must not be error for a stream; got overlong='error'")

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

    def num_steps(self, per_pass: int) -> int:
        """Return the optimizer steps of the run; the last one may hold fewer sequences.

        Args:
            per_pass: sequences in one pass over the data.
        """
        if self.max_steps:
            return self.max_steps
        return max(1, -(-self.num_sequences(per_pass) // self.global_batch))

    def num_sequences(self, per_pass: int) -> int:
        """Return how many sequences the run sees, counting repeats."""
        if self.max_steps:
            return self.max_steps * self.global_batch
        return max(1, round(self.num_epochs * per_pass))

    def save(self, path: Path) -> None:
        """Write the config as JSON, atomically."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str) -> RunConfig:
        """Build a config from JSON values; ``source`` is named in errors.

        Raises:
            UserError: if a key is unknown or a value is not legal.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(values.keys() - known)
        if unknown:
            raise UserError(
                f"run config must have known keys only; got {key_list(unknown)} in {source}; "
                f"known are {', '.join(sorted(known))}"
            )
        if isinstance(values.get("targets"), list):
            values = {**values, "targets": tuple(values["targets"])}
        if values.get("micro_batch_tokens") and values.get("micro_batch") == _FORMER_MICRO_BATCH:
            values = {**values, "micro_batch": 0}
        return cls(**values)

    @classmethod
    def load(cls, path: Path) -> RunConfig:
        """Read a config from JSON.

        Raises:
            UserError: if the file is missing, malformed, or holds an unknown key or bad value.
        """
        return cls.from_json(read_json(path), path)

    @classmethod
    def from_json(cls, values: Any, path: Path) -> RunConfig:
        """Build a config from the content of a JSON file; raises as `load` does."""
        if not isinstance(values, dict):
            raise UserError(
                f"run config must be a JSON object; got {type(values).__name__} in {path}"
            )
        return cls.from_dict(values, str(path))
