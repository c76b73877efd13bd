"""The study's settings: the model, its layers, and how much each training sees on a device."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.quality.spec import Spec
from diablo_ds.adapter.blocks import legal_num_blocks

ANCHORS: Mapping[str, float] = {
    "diablo": 2e-3,
    "lora": 1e-3,
    "rslora": 5e-4,
    "dora": 1e-3,
    "full": 5e-5,
}
"""Rates by method from which a search starts; all rates are these times a power of 2."""
MIN_STEPS = 3
"""Optimizer steps of a training, at least: with fewer, a batch size is left out."""
Widths = Mapping[str, tuple[tuple[int, int], ...]]
"""By the name of a set of targets: (in_features, out_features) of each of its layers."""


@dataclass(frozen=True)
class Amounts:
    """How much is trained and measured, chosen by device and budget."""

    num_examples: int
    """Training examples of a training of the sweeps."""
    batch_examples: int
    """The same for the comparison of batch sizes."""
    final_examples: int
    """The same for the final comparison on GSM8K."""
    num_seeds: int
    global_batch: int
    """Examples per step outside of the comparison of batch sizes."""
    num_held_out: int
    """Examples whose loss is measured, and in commonsense the choice among their answers."""
    final_questions: int
    """GSM8K questions to which answers are generated; 0 for none."""


@dataclass(frozen=True)
class Study:
    """What all parts of the study know."""

    device: str
    """"cpu", or the name of the GPU: what was measured elsewhere is kept apart."""
    precision: str
    widths: Widths
    amounts: Amounts
    model: str = "default"
    batches: tuple[int, ...] = (8, 32, 128, 512)
    data: str = "commonsense"
    """What the sweeps train on, one of `benchmarks.quality.spec.DATA`."""
    max_length: int = 256
    """Tokens of an example of the sweeps."""
    final_max_length: int = 384
    """Tokens of an example of the final comparison, on GSM8K."""
    num_blocks: int = 64
    """N of the parts that compare anything but N."""
    few_blocks: int = 16
    """N of the larger deltas beside it."""
    anchors: Mapping[str, float] = field(default_factory=lambda: dict(ANCHORS))

    def spec(self, method: str, num_blocks: float = 0, **values: Any) -> Spec:
        """Return a training of the sweeps.

        Args:
            method: its name.
            num_blocks: N, or for LoRA's methods the N whose size it has; 0 for full fine-tuning.
            values: of other fields, which replace those of the sweeps.
        """
        sweep: dict[str, Any] = {
            "rate": self.anchors[method],
            "global_batch": self.amounts.global_batch,
            "num_examples": self.amounts.num_examples,
            "num_blocks": f"{num_blocks:g}" if num_blocks else "",
            "precision": self.precision,
            "data": self.data,
            "max_length": self.max_length,
            "num_held_out": self.amounts.num_held_out,
            "num_questions": self.num_questions(self.amounts.num_held_out),
            "model": self.model,
        }
        return Spec(method=method, **(sweep | values))

    def num_questions(self, num_held_out: int) -> int:
        """Return the questions scored in a sweep: held-out ones where their loss holds a score."""
        return num_held_out if self.data == "commonsense" else 0

    def legal(self, targets: str = "default") -> list[int]:
        """Return the block counts that divide both widths of every layer, in ascending order."""
        counts = (set(legal_num_blocks(*width)) for width in set(self.widths[targets]))
        return sorted(set.intersection(*counts))

    def nearest(self, num_blocks: float, targets: str = "default") -> int:
        """Return the legal block count that is nearest on a logarithmic scale."""
        return min(self.legal(targets), key=lambda n: (abs(math.log(n / num_blocks)), -n))

    def equal_size(self, num_blocks: float, targets: str) -> float:
        """Return the N, integer or not, with which targets have the default targets' size."""
        own, default = _num_weights(self.widths[targets]), _num_weights(self.widths["default"])
        return num_blocks * own / default

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Study:
        """Return the study of `to_json`'s values."""
        widths = {
            name: tuple((layer[0], layer[1]) for layer in layers)
            for name, layers in values["widths"].items()
        }
        others = {
            "widths": widths,
            "amounts": Amounts(**values["amounts"]),
            "batches": tuple(values["batches"]),
        }
        return cls(**{**values, **others})


def _num_weights(widths: Sequence[tuple[int, int]]) -> int:
    return sum(rows * columns for rows, columns in widths)
