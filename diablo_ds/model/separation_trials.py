"""Losses of examples together and alone, in a tiny model with the features of a run's.

`diablo_ds.model.separation` decides by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diablo_ds.data.batches import BatchRow, collate
from diablo_ds.data.labels import Example
from diablo_ds.data.masks import EXAMPLES, NO_MASK, MaskRule
from diablo_ds.errors import UserError
from diablo_ds.model.attention import attends_by_variable_length
from diablo_ds.model.small_model import build_small_model, small_configs
from diablo_ds.model.varlen import UnfitAttentionError

TOLERANCE = 2e-3
"""Nats by which a token's loss may differ. Rounding of fp32 makes 1e-6 to 1e-3 in a deep random
model, a token that sees another example 1e-1 to 3."""
ROW = 40
"""Tokens of the longest row, which represents one of max_length tokens."""
_ALONE = (40, 11, 17, 9, 26, 12, 17)
"""Tokens of each example."""
_PACKED = ((0,), (1, 2, 3), (4, 5))
PADDED = ((0,), (1,), (2,))
EQUAL = ((2,), (6,))
_FILLER, LONG = (1, 2, 3, 4, 5), 512


class SmallModel:
    """A tiny model with the run's features, and the losses of some examples alone in it.

    Args:
        config: the base model's Hugging Face config.
        attention: transformers' name of the attention.
        max_length: tokens of the run's longest row, which `ROW` tokens represent here.

    Raises:
        UserError: if no tiny model of this config can be built and run.
    """

    def __init__(self, model_config: Any, attention: str, max_length: int) -> None:
        reason, self.model_type = "", model_config.model_type
        for small in small_configs(model_config, max_length=max_length, row_length=ROW):
            try:
                self.model = build_small_model(small, attention)
                self.vocab_size = vocab_size = small.get_text_config().vocab_size
                numbers = np.random.default_rng(0)
                self.examples = [_example(numbers, n, vocab_size) for n in _ALONE]
                self.alone = [self._alone(example) for example in self.examples]
                return
            except UnfitAttentionError:
                raise
            # Whatever a model's code raises for widths that it does not support.
            except Exception as error:
                reason = reason or (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(reason or "its widths cannot be made smaller")

    @torch.no_grad()
    def losses(self, rows: Sequence[BatchRow], **options: Any) -> list[Tensor]:
        """Return the loss of each token of each example in a micro batch: a tensor per example."""
        batch = collate(rows, pad_id=0, **options)
        by_length = options.get("packing", False) and attends_by_variable_length(self.model)
        inputs = batch.variable_length_inputs() if by_length else batch.model_inputs()
        logits = self.model(**inputs).logits.view(*batch.input_ids.shape, -1).float()
        negative = -torch.log_softmax(logits[:, :-1], dim=-1)
        losses = negative.gather(2, batch.input_ids[:, 1:, None])[..., 0]  # [rows, seq - 1]
        found = []
        for index, row in enumerate(rows):
            start = 0
            for example in row:
                end = start + len(example.input_ids)
                found.append(losses[index, start : end - 1])
                start = end
        return found

    def _alone(self, example: Example) -> Tensor:
        return self.losses([[example]], multiple=1)[0]

    def try_training(self) -> None:
        """Raise UnfitAttentionError where the model asks for more of its attention in training."""
        self.model.train()
        try:
            self._alone(self.examples[0])
        finally:
            self.model.eval()

    def difference(self, members: Sequence[Sequence[int]], **options: Any) -> float:
        """Return the largest difference of a token's loss from that of its example alone."""
        losses = self.losses([[self.examples[i] for i in row] for row in members], **options)
        pairs = zip((i for row in members for i in row), losses, strict=True)
        return max(distance(loss, self.alone[i]) for i, loss in pairs)

    def difference_or_inf(self, members: Sequence[Sequence[int]], **options: Any) -> float:
        """Return the same, or infinity if the model does not accept such a mask."""
        try:
            return self.difference(members, **options)
        except Exception:  # whatever a model's code raises for a mask of another shape
            return float("inf")

    def difference_by_history(self) -> float:
        """Return the largest difference of losses alone when examples come in another order."""
        order = sorted(range(len(_ALONE)), key=lambda index: -_ALONE[index])  # as micro batches are
        reordered = [self._alone(self.examples[index]) for index in order]
        return max(distance(a, self.alone[i]) for a, i in zip(reordered, order, strict=True))

    def sees_later_tokens(self) -> bool:
        """Return whether another last token changes the losses of the tokens before it."""
        first = self.examples[0]
        other = [*first.input_ids[:-1], (first.input_ids[-1] + 1) % self.vocab_size]
        return distance(self._alone(Example(other, other))[:-1], self.alone[0][:-1]) > TOLERANCE


class PackedRows:
    """Packed rows in two tiny models: short rows with scaled lengths, and a long row as it is.

    In the long row a bias that grows with the place in the row, such as ALiBi's, loses digits.
    """

    def __init__(self, scaled: SmallModel, unscaled: SmallModel, length: int) -> None:
        self.scaled, self.unscaled = scaled, unscaled
        self.long_row: list[int] = []
        tokens = 0
        while tokens + max(_ALONE[i] for i in _FILLER) <= length:
            self.long_row.append(_FILLER[len(self.long_row) % len(_FILLER)])
            tokens += _ALONE[self.long_row[-1]]

    def difference(self, mask: MaskRule = NO_MASK) -> float:
        """Return the largest difference of a token's loss from that of its example alone."""
        short = self.scaled.difference_or_inf(_PACKED, packing=True, mask=mask)
        if short > TOLERANCE or not self.long_row:
            return short
        if mask.windows:
            mask = _windows_of(self.unscaled.model.config, mask)
        long = self.unscaled.difference_or_inf([self.long_row], packing=True, mask=mask)
        return max(short, long)


def _example(numbers: np.random.Generator, length: int, vocab_size: int) -> Example:
    ids = numbers.integers(0, vocab_size, length).tolist()
    return Example(ids, ids)


def distance(one: Tensor, other: Tensor) -> float:
    """Return the largest difference between two examples' losses, in nats; not finite: infinity."""
    difference = float((one - other).abs().max())
    return difference if np.isfinite(difference) else float("inf")


def mask_forms(attention: str) -> tuple[torch.dtype | None, ...]:
    """Return the dtypes of additive masks to try; None is a boolean mask."""
    return (torch.float32,) if attention == "eager" else (None, torch.float32)


def _windows_of(model_config: Any, mask: MaskRule) -> MaskRule:
    """Return a rule by layer type with a config's own windows."""
    own = example_masks(model_config, mask.additive, by_layer_type=True)
    assert own is not None
    return own


def example_masks(
    model_config: Any, form: torch.dtype | None, by_layer_type: bool
) -> MaskRule | None:
    """Return the rule for block-diagonal masks, or None where layers have no types."""
    if not by_layer_type:
        return MaskRule(EXAMPLES, additive=form)
    text = model_config.get_text_config()
    layer_types = sorted(set(getattr(text, "layer_types", None) or ()))
    window = getattr(text, "sliding_window", None) or 0
    windows = {name: window if "sliding" in name else 0 for name in layer_types}
    return MaskRule(EXAMPLES, windows, form) if windows else None
