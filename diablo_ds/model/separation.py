"""Proof that examples which share a row or a micro batch do not change each other's losses.

Positions that restart keep packed examples apart in most models, but not where a layer carries a
state along the row, where the mask is made without positions, or where the rotary embedding depends
on the longest row. Nor is right padding without a mask always harmless. No list of architectures
stays true, so it is tried, before a run, on a tiny random model of the same class and features:
losses of examples together against losses of the same examples alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diablo_ds.config.run import RunConfig
from diablo_ds.data.batches import PAD_TO_MULTIPLE, BatchRow, collate
from diablo_ds.data.labels import Example
from diablo_ds.data.masks import EXAMPLES, NO_MASK, PADDING, MaskRule
from diablo_ds.errors import UserError
from diablo_ds.model.attention import attends_by_variable_length, takes_lengths
from diablo_ds.model.small_model import build_small_model, small_configs
from diablo_ds.model.varlen import VARLEN, UnfitAttentionError

TOLERANCE = 2e-3
"""Nats by which a token's loss may differ. Rounding of fp32 makes 1e-6 to 1e-3 in a deep random
model, a token that sees another example 1e-1 to 3."""
_ROW = 40
"""Tokens of the longest row, which stands for one of max_length tokens."""
_ALONE = (40, 11, 17, 9, 26, 12, 17)
"""Tokens of each example."""
_PACKED = ((0,), (1, 2, 3), (4, 5))
_PADDED = ((0,), (1,), (2,))
_EQUAL = ((2,), (6,))
_FILLER, _LONG = (1, 2, 3, 4, 5), 512


@dataclass(frozen=True)
class Separation:
    """How a run keeps examples apart."""

    mask: MaskRule = NO_MASK
    equal_lengths: bool = False
    """Whether only examples of equal length may share a micro batch."""
    text: str = ""
    """What was found, for the screen; empty where nothing had to be done."""


class _SmallModel:
    """A tiny model with the run's features, and the losses of some examples alone in it.

    Args:
        config: the base model's Hugging Face config.
        attention: transformers' name of the attention.
        max_length: tokens of the run's longest row, for which `_ROW` tokens shall stand.

    Raises:
        UserError: if no tiny model of this config can be built and run.
    """

    def __init__(self, config: Any, attention: str, max_length: int) -> None:
        reason, self.model_type = "", config.model_type
        for small in small_configs(config, max_length=max_length, row_length=_ROW):
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
        """Return the loss of each token of each example in a micro batch, one tensor an example."""
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
        """Return by how much a token's loss differs from that of its example alone, at most."""
        losses = self.losses([[self.examples[i] for i in row] for row in members], **options)
        pairs = zip((i for row in members for i in row), losses, strict=True)
        return max(_distance(loss, self.alone[i]) for i, loss in pairs)

    def difference_or_inf(self, members: Sequence[Sequence[int]], **options: Any) -> float:
        """Return the same, or infinity where the model does not take such a mask."""
        try:
            return self.difference(members, **options)
        except Exception:  # whatever a model's code raises for a mask of another shape
            return float("inf")

    def difference_by_history(self) -> float:
        """Return by how much losses alone differ when examples come in another order."""
        order = sorted(range(len(_ALONE)), key=lambda index: -_ALONE[index])  # as micro batches are
        again = [self._alone(self.examples[index]) for index in order]
        return max(_distance(a, self.alone[i]) for a, i in zip(again, order, strict=True))

    def sees_later_tokens(self) -> bool:
        """Return whether another last token changes the losses of those before it."""
        first = self.examples[0]
        other = [*first.input_ids[:-1], (first.input_ids[-1] + 1) % self.vocab_size]
        return _distance(self._alone(Example(other, other))[:-1], self.alone[0][:-1]) > TOLERANCE


class _PackedRows:
    """Packed rows in two tiny models: with scaled lengths in short rows, and a long row as it is.

    In the long row a bias that grows with the place in the row, such as ALiBi's, loses digits.
    """

    def __init__(self, scaled: _SmallModel, unscaled: _SmallModel, length: int) -> None:
        self.scaled, self.unscaled = scaled, unscaled
        self.long_row: list[int] = []
        tokens = 0
        while tokens + max(_ALONE[i] for i in _FILLER) <= length:
            self.long_row.append(_FILLER[len(self.long_row) % len(_FILLER)])
            tokens += _ALONE[self.long_row[-1]]

    def difference(self, mask: MaskRule = NO_MASK) -> float:
        """Return by how much a token's loss differs from that of its example alone, at most."""
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


def _distance(one: Tensor, other: Tensor) -> float:
    difference = float((one - other).abs().max())
    return difference if np.isfinite(difference) else float("inf")


def prove_separation(
    model_config: Any, run: RunConfig, attention: str, dtype: torch.dtype
) -> Separation:
    """Decide how a run keeps its examples apart, by trying it; takes about a second on a CPU.

    Args:
        model_config: the base model's Hugging Face config.
        run: the run config.
        attention: the attention that the run takes.
        dtype: of the model.

    Raises:
        UserError: if examples change each other's losses whatever is done, or if the model is not
            causal.
    """
    kind = model_config.model_type
    # Without packing, FlashAttention computes what PyTorch's own kernels compute.
    proven = attention if run.packing or not takes_lengths(attention) else ""
    if attention == VARLEN:
        _check_varlen(model_config, run)
    try:
        longest = _longest_row(run)
        small = _SmallModel(model_config, proven, longest)
        unscaled = _SmallModel(model_config, proven, _ROW) if run.packing else small
    except ValueError as error:
        if run.packing:
            raise UserError(
                "packing needs a proof that examples do not see each other, on a tiny model of the "
                f"same kind; got none for model type {kind!r}: {error}; use --no-packing"
            ) from None
        return Separation(text=f"Padding was not tried on a tiny model of type {kind!r}: {error}")
    history = small.difference_by_history()
    if history > TOLERANCE:
        text = model_config.get_text_config()
        known = getattr(text, "max_position_embeddings", None)
        raise UserError(
            "losses must not depend on the rows that a model has seen before; got up to "
            f"{history:.3g} nats a token, on a tiny model of type {kind!r}, since its positions "
            f"adapt to the longest row so far; use --max-length {known or 'as in its training'}"
        )
    if small.sees_later_tokens():
        raise UserError(
            f"model must be causal; got model type {kind!r}, where a token's output depends on "
            "those after it; is its config a decoder's?"
        )
    if run.packing:
        packed = _PackedRows(small, unscaled, min(run.max_length, _LONG))
        return _decide_packing(packed, model_config, run, attention, dtype)
    return _decide_padding(small, run)


def _check_varlen(model_config: Any, run: RunConfig) -> None:
    """Raise UserError unless the kernel of variable length computes what a model asks for.

    Models ask by arguments of their own for windows, soft caps, sinks or sparse patterns; one that
    is ignored changes the losses of a tiny model, alone in its row.
    """
    longest = _longest_row(run)
    own = _SmallModel(model_config, VARLEN, longest)
    if run.base_dropout is not False:
        own.try_training()
    usual = _SmallModel(model_config, "", longest)
    difference = max(map(_distance, own.alone, usual.alone))
    if difference > TOLERANCE:
        raise UserError(
            f"attention {VARLEN!r} must compute what the model's own does; got losses that differ "
            f"by up to {difference:.3g} nats a token, on a tiny model of type "
            f"{model_config.model_type!r}; use --attention sdpa"
        )


def _longest_row(run: RunConfig) -> int:
    return -(-run.max_length // PAD_TO_MULTIPLE) * PAD_TO_MULTIPLE


def _decide_packing(
    packed: _PackedRows, model_config: Any, run: RunConfig, attention: str, dtype: torch.dtype
) -> Separation:
    by_positions = packed.difference()
    if by_positions <= TOLERANCE:
        return Separation(text="" if takes_lengths(attention) else _dense_text(attention, run))
    takes_masks = not takes_lengths(attention)
    for form in _mask_forms(attention) if takes_masks else ():
        for by_layer_type in (False, True):
            tried = _example_masks(packed.scaled.model.config, form, by_layer_type)
            if tried is None:
                continue
            if packed.difference(tried) <= TOLERANCE:
                form_of_run = None if form is None else dtype
                mask = _example_masks(model_config, form_of_run, by_layer_type)
                assert mask is not None
                return Separation(mask, text=_mask_text(packed.scaled, mask, run, by_positions))
    repair = "use --no-packing" + ("" if takes_masks else ", or try --attention sdpa")
    raise UserError(
        f"packing must not change losses; got up to {by_positions:.3g} nats a token, on a tiny "
        f"model of type {model_config.model_type!r}, between examples packed and alone; {repair}"
    )


def _mask_text(small: _SmallModel, mask: MaskRule, run: RunConfig, by_positions: float) -> str:
    return (
        f"Packed examples get a block-diagonal attention mask: {_kind(small)} does not keep them "
        f"apart by positions (losses differ by up to {by_positions:.3g} nats a token). "
        + _cost_text(mask, run)
    )


def _dense_text(attention: str, run: RunConfig) -> str:
    form = torch.float32 if attention == "eager" else None
    return (
        f"Packed examples are told apart by an attention mask, which {attention} gets from their "
        "positions. " + _cost_text(MaskRule(EXAMPLES, additive=form), run)
    )


def _cost_text(mask: MaskRule, run: RunConfig) -> str:
    width = run.max_length
    num_rows = run.micro_batch_tokens // width or run.micro_batch
    return (
        f"The mask takes {mask.num_bytes(num_rows, width) / 1e6:,.1f} MB for a micro batch of "
        f"{num_rows} x {width} tokens, and attention with a mask is slower"
    )


def _decide_padding(small: _SmallModel, run: RunConfig) -> Separation:
    without_mask = small.difference(_PADDED)
    if without_mask <= TOLERANCE:
        return Separation()
    found = f"padding changes the losses of {_kind(small)} by up to {without_mask:.3g} nats a token"
    if small.difference_or_inf(_PADDED, mask=MaskRule(PADDING)) <= TOLERANCE:
        return Separation(
            MaskRule(PADDING), text=f"Padded rows get an attention mask, which is slower: {found}"
        )
    if run.micro_batch == 1 or small.difference(_EQUAL, multiple=1) <= TOLERANCE:
        return Separation(
            equal_lengths=True,
            text="Only examples of equal length share a micro batch, so micro batches are smaller "
            f"and more: {found}",
        )
    raise UserError(
        "examples of a micro batch must not change each other's losses; got up to "
        f"{without_mask:.3g} nats a token on a tiny model of type {small.model_type!r}; use "
        "--micro-batch 1"
    )


def _kind(small: _SmallModel) -> str:
    return f"model type {small.model_type!r}"


def _mask_forms(attention: str) -> tuple[torch.dtype | None, ...]:
    return (torch.float32,) if attention == "eager" else (None, torch.float32)


def _windows_of(config: Any, mask: MaskRule) -> MaskRule:
    """Return a rule by layer type with a config's own windows."""
    own = _example_masks(config, mask.additive, by_layer_type=True)
    assert own is not None
    return own


def _example_masks(config: Any, form: torch.dtype | None, by_layer_type: bool) -> MaskRule | None:
    """Return the rule for block-diagonal masks, or None where layers have no types."""
    if not by_layer_type:
        return MaskRule(EXAMPLES, additive=form)
    text = config.get_text_config()
    layer_types = sorted(set(getattr(text, "layer_types", None) or ()))
    window = getattr(text, "sliding_window", None) or 0
    windows = {name: window if "sliding" in name else 0 for name in layer_types}
    return MaskRule(EXAMPLES, windows, form) if windows else None
