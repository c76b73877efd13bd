"""What forward and backward of a frozen model compute, counted as MFU does."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from diablo_ds.adapter.layer import DiaBloLinear
from diablo_ds.model.loss_head import LossHead


class Flops(NamedTuple):
    """FLOPs of forward and backward to the inputs of a model with a frozen base; see `of_sizes`."""

    per_token: float
    """Matrices of the model without its head."""
    per_target: float
    """The head."""
    per_squared_length: float
    """Attention, for the square of an example's length in tokens."""

    @classmethod
    def of_sizes(
        cls, matrix_elements: int, head_elements: int, attention_width: int, num_layers: int
    ) -> Flops:
        """Return what a model of given sizes computes.

        4 FLOPs for each element of a frozen matrix that multiplies (forward, and the gradient of
        the input; the embedding does not multiply), and attention's two products forward and four
        backward, half of each under the causal mask. What is recomputed, and what the adapter adds,
        does not count. A sliding window is not taken into account.

        Args:
            matrix_elements: of all frozen matrices but the head's.
            head_elements: of the head's matrix.
            attention_width: heads times the width of each.
            num_layers: decoder layers.
        """
        return cls(
            per_token=4.0 * matrix_elements,
            per_target=4.0 * head_elements,
            per_squared_length=6.0 * attention_width * num_layers,
        )

    def total(self, *, tokens: int, targets: int, squared_lengths: int) -> float:
        """Return the FLOPs of tokens without padding, targets, and squared lengths, summed."""
        per = self.per_token * tokens + self.per_target * targets
        return per + self.per_squared_length * squared_lengths


def count_flops(model: nn.Module, config: Any) -> Flops:
    """Return what a model with a frozen base computes; weights may be partitioned.

    Args:
        model: a Hugging Face causal model, with or without deltas.
        config: its Hugging Face config.
    """
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    kinds = nn.Linear | DiaBloLinear | LossHead
    weights: list[Any] = [m.weight for m in model.modules() if isinstance(m, kinds)]
    sizes = {id(weight): getattr(weight, "ds_numel", weight.numel()) for weight in weights}
    head_size = sizes.get(id(head.weight), 0) if head is not None else 0
    text = config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    width = text.num_attention_heads * head_dim
    matrices = sum(sizes.values()) - head_size
    return Flops.of_sizes(matrices, head_size, width, text.num_hidden_layers)
