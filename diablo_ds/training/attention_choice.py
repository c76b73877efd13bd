"""Attention and padding of a run, where they are open: what keeps its examples apart, and fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diablo_ds.config.batch_resolution import AS_RECORDED
from diablo_ds.config.run import RunConfig
from diablo_ds.data.batches import PAD_TO_MULTIPLE
from diablo_ds.errors import UserError
from diablo_ds.model.attention import choose_attention, takes_lengths
from diablo_ds.model.separation import Separation
from diablo_ds.model.varlen import VARLEN
from diablo_ds.training.machine import Machine

CPU_MULTIPLE = 64
"""Tokens to a multiple of which micro batches are padded on a CPU: oneDNN keeps buffers for each
width that it has seen."""


def resolve_attention(
    run_config: RunConfig,
    machines: Sequence[Machine],
    shapes: Any,
    device_type: str,
    recorded: RunConfig | None,
) -> tuple[str, str]:
    """Return the attention of all ranks, and why it was chosen where it was left open."""
    first = machines[0]
    for rank, machine in enumerate(machines):
        if machine.attentions_by_length != first.attentions_by_length:
            raise UserError(
                "attentions of variable length must be the same on every host; got "
                f"{_kernel_names(first)} on rank 0 ({first.host}) and {_kernel_names(machine)} "
                f"on rank {rank} ({machine.host})"
            )

    def choose(setting: str) -> str:
        return choose_attention(
            setting,
            shapes,
            run_config.precision,
            device_type,
            first.attentions_by_length,
            packing=run_config.packing,
        )

    if run_config.attention == "auto" and recorded is not None and recorded.attention != "auto":
        try:
            return choose(recorded.attention), AS_RECORDED
        except ValueError:  # another machine; a continuation may differ in it
            return choose("auto"), f"{recorded.attention}, which this run had, is not to be had"
    name = choose(run_config.attention)
    if name == VARLEN:
        return name, "packed rows need no mask with it, and FlashAttention is not installed"
    if takes_lengths(name):
        return name, "it is installed"
    return name, "transformers' choice for this model"


def _kernel_names(machine: Machine) -> str:
    return ", ".join(machine.attentions_by_length) or "none"


def resolve_multiple(
    given: int, device_type: str, recorded: RunConfig | None, separation: Separation
) -> tuple[int, str]:
    """Return the tokens to a multiple of which micro batches are padded, and why if it was open."""
    if separation.equal_lengths:
        if given > 1:
            raise UserError(
                "pad_to_multiple_of must be auto or 1, since padding changes the losses of this "
                f"model; got pad_to_multiple_of={given}"
            )
        return 1, "it changes this model's losses, so only equal lengths share a micro batch"
    if given:
        return given, ""
    if recorded is not None:  # an older version recorded none
        return recorded.pad_to_multiple_of or PAD_TO_MULTIPLE, AS_RECORDED
    if device_type == "cpu":
        return CPU_MULTIPLE, "each further width of a micro batch takes memory on a CPU"
    return PAD_TO_MULTIPLE, "matrix units like round sizes"
