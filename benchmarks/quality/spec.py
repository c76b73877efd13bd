"""What one training of the study is: a spec, in plain values, with a key by which it is found."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from diablo_ds.config.choices import DELTA_PATHS, SCHEDULES
from diablo_ds.errors import UserError

LORA_METHODS = ("lora", "rslora", "dora")
METHODS = ("diablo", *LORA_METHODS, "full")
DATA = ("commonsense", "gsm8k")
PRECISIONS = ("fp32", "bf16")
MASTERS = ("fp32", "none")
TARGETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "default": (),
        "all-linear": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
        "mlp": ("gate_proj", "up_proj", "down_proj"),
    }
)
"""Named sets of target layers; () is the default of the model family: q, k, v, up and down."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One training, with all that decides its result. Every field has an effect.

    Raises:
        UserError: if a value is out of its range, or would have no effect.
    """

    method: str
    """One of `METHODS`."""
    rate: float
    """Peak learning rate of AdamW."""
    global_batch: int
    """Examples per optimizer step."""
    num_examples: int
    """Training examples seen in all, counting repeats; the last step may hold fewer."""
    num_blocks: str = ""
    """DiaBlo: blocks per target layer, or auto:<share>. LoRA's methods: a number N, whole or not;
    the rank is the one whose size is nearest to that of N blocks on the same targets. Full: empty.
    """
    targets: str = "default"
    """One of `TARGETS`; full fine-tuning trains every parameter and leaves the default."""
    seed: int = 0
    """Seed of the data's order, and of LoRA's first matrices."""
    data: str = "commonsense"
    """One of `DATA`."""
    precision: str = "fp32"
    """Dtype of the base and its products, one of `PRECISIONS`."""
    delta_path: str = "auto"
    """DiaBlo's delta path; auto for the other methods."""
    master: str = "fp32"
    """Dtype of what AdamW updates: fp32, or none for the precision's own; none needs bf16."""
    permuted: bool = False
    """DiaBlo: whether input channels are permuted at random before the blocks."""
    max_length: int = 256
    """Tokens; longer examples are left out of training, held-out part and questions alike."""
    schedule: str = "linear"
    """Learning-rate schedule after warm-up."""
    warmup_share: float = 0.1
    """Share of the steps that is warm-up."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradient norm to clip to; 0 for no clipping."""
    num_held_out: int = 400
    """Held-out examples whose loss is measured, before and after."""
    num_questions: int = 0
    """Questions scored: of commonsense the first held-out examples, by choice, from the forwards of
    the loss; of gsm8k the first test questions, by a generated answer."""
    model: str = "default"
    """Folder of the base model, or default for SmolLM2-135M-Instruct."""

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise UserError(
                    f"{name} must be one of {', '.join(known)}; got {name}={getattr(self, name)!r}"
                )
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise UserError(f"rate must be above 0; got rate={self.rate}")
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise UserError(
                    f"{name} must be at least {least}; got {name}={getattr(self, name)}"
                )
        if not 0 <= self.warmup_share < 1:
            raise UserError(f"warmup_share must be in [0, 1); got {self.warmup_share}")
        self._check_effects()

    def _check_effects(self) -> None:
        is_diablo, is_full = self.method == "diablo", self.method == "full"
        if is_full != (self.num_blocks == ""):
            raise UserError(
                "num_blocks must be given for every method but full; got "
                f"method={self.method}, num_blocks={self.num_blocks!r}"
            )
        if self.method in LORA_METHODS and not _is_positive(self.num_blocks):
            raise UserError(
                f"num_blocks of {self.method} must be a number above 0; got {self.num_blocks!r}"
            )
        without_effect = {
            "targets": is_full and self.targets != "default",
            "delta_path": not is_diablo and self.delta_path != "auto",
            "permuted": not is_diablo and self.permuted,
            "master": self.master == "none" and self.precision == "fp32",
        }
        for name, is_wrong in without_effect.items():
            if is_wrong:
                raise UserError(
                    f"{name} must have an effect; got {name}={getattr(self, name)!r} with "
                    f"method={self.method}, precision={self.precision}"
                )

    @property
    def num_steps(self) -> int:
        """Optimizer steps."""
        return -(-self.num_examples // self.global_batch)

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up: the rounded share."""
        return round(self.warmup_share * self.num_steps)

    def key(self) -> str:
        """Return the text of all fields; two records with the same key are of one training."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Spec:
        """Return the spec of `to_json`'s values, with defaults for fields that are absent.

        Raises:
            UserError: if a field is unknown, or see above.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := values.keys() - known:
            raise UserError(f"a spec's fields must be known; got {', '.join(sorted(unknown))}")
        return cls(**values)


_CHOICES: dict[str, tuple[str, ...]] = {
    "method": METHODS,
    "targets": tuple(TARGETS),
    "data": DATA,
    "precision": PRECISIONS,
    "delta_path": DELTA_PATHS,
    "master": MASTERS,
    "schedule": tuple(SCHEDULES),
}
_LEAST = {
    "global_batch": 1,
    "num_examples": 1,
    "seed": 0,
    "max_length": 1,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "num_held_out": 1,
    "num_questions": 0,
}


def _is_positive(text: str) -> bool:
    try:
        value = float(text)
    except ValueError:
        return False
    return math.isfinite(value) and value > 0
