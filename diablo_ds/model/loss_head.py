"""Putting the chunked loss into a model's head, where that changes no number."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from diablo_ds.model.loss import LossHead


class _NoOutput:
    """What a model without layers returns: empty hidden states, and nothing else."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int) -> Any:
        return self.last_hidden_state if index == 0 else None

    def __getattr__(self, name: str) -> None:
        return None


class _NoLayers(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    def forward(self, *args: Any, **inputs: Any) -> _NoOutput:
        return _NoOutput(torch.empty(1, 2, self.hidden_size, device="meta"))


def install_loss_head(model: Any, shapes: Any) -> bool:
    """Let the model's head compute the loss chunk by chunk, where its output is the logits.

    Some models scale or cap what their head returns; those keep their logits whole.

    Args:
        model: the model.
        shapes: the same on the meta device; may be the model itself.

    Returns:
        Whether it was done.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:  # none, or a target of the adapter
        return False
    outputs: list[torch.Tensor] = []
    probe = nn.Linear(head.in_features, head.out_features, device="meta")
    probe.register_forward_hook(lambda module, args, output: outputs.append(output))
    before = shapes.get_output_embeddings(), getattr(shapes, shapes.base_model_prefix)
    shapes.set_output_embeddings(probe)
    setattr(shapes, shapes.base_model_prefix, _NoLayers(head.in_features))
    try:
        result = shapes(input_ids=torch.zeros(1, 2, dtype=torch.int64, device="meta"))
    except (AttributeError, KeyError, TypeError, ValueError):
        return False  # a model of another build
    finally:
        setattr(shapes, shapes.base_model_prefix, before[1])
        shapes.set_output_embeddings(before[0])
    if len(outputs) != 1 or result.logits is not outputs[0]:
        return False
    model.set_output_embeddings(LossHead(head))
    return True
