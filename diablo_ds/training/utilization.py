"""MFU of a step: what the model computes of what the GPUs could have computed meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from diablo_ds.model.flops import Flops, count_flops
from diablo_ds.planning.hardware import peak_flops
from diablo_ds.training.step import Counts


@dataclass(frozen=True)
class Utilization:
    """Turns the counts and seconds of a step into MFU."""

    flops: Flops
    peak: float
    """Of all ranks together, in FLOP/s of dense 16-bit products."""

    def mfu(self, counts: Counts, seconds: float) -> float:
        """Return the share of the peak, e.g. 0.45.

        Args:
            counts: of the global batch.
            seconds: of the step, all of its wall time.
        """
        done = self.flops.total(
            tokens=counts.tokens,
            targets=counts.targets,
            squared_lengths=counts.squared_lengths,
        )
        return done / (seconds * self.peak)


def find_utilization(
    model: Any, device: torch.device, precision: str, world_size: int
) -> Utilization | None:
    """Return how to compute MFU; None on a CPU, in fp32, or where the card's peak is not known.

    All ranks are taken to have cards like this one's.
    """
    if device.type != "cuda" or precision == "fp32":
        return None
    peak = peak_flops(torch.cuda.get_device_name(device))
    if peak is None:
        return None
    return Utilization(count_flops(model, model.config), peak * world_size)
