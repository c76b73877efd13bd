"""Proof that examples which share a row or a micro batch do not change each other's losses.

Positions that restart keep packed examples apart in most models, but not where a layer carries a
state along the row, where the mask is made without positions, or where the rotary embedding depends
on the longest row. Right padding without a mask is not always harmless either. A list of
architectures would go out of date, so each run tries it at its start, on a tiny random model of the
same class and features: losses of examples together against losses of the same examples alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from diablo_ds.config.run import RunConfig
from diablo_ds.data.batches import padded_width
from diablo_ds.data.masks import EXAMPLES, NO_MASK, PADDING, MaskRule
from diablo_ds.errors import UserError
from diablo_ds.model.attention import takes_lengths
from diablo_ds.model.separation_trials import (
    EQUAL,
    LONG,
    PADDED,
    ROW,
    TOLERANCE,
    PackedRows,
    SmallModel,
    distance,
    example_masks,
    mask_forms,
)
from diablo_ds.model.varlen import VARLEN


@dataclass(frozen=True)
class Separation:
    """How a run keeps examples apart."""

    mask: MaskRule = NO_MASK
    equal_lengths: bool = False
    """Whether only examples of equal length may share a micro batch."""
    text: str = ""
    """The finding, to be shown; empty if nothing had to be done."""


def prove_separation(
    model_config: Any, run_config: RunConfig, attention: str, dtype: torch.dtype
) -> Separation:
    """Decide how a run keeps its examples apart, by trial; takes about a second on a CPU.

    Args:
        model_config: the base model's Hugging Face config.
        run_config: packing, batch and length.
        attention: transformers' name of the run's attention.
        dtype: of the model.

    Raises:
        UserError: if examples change each other's losses with every mask that was tried, or if the
            model is not causal.
    """
    kind = model_config.model_type
    # Without packing, FlashAttention computes what PyTorch's own kernels compute.
    proven = attention if run_config.packing or not takes_lengths(attention) else ""
    if attention == VARLEN:
        _check_varlen(model_config, run_config)
    try:
        longest = padded_width(run_config.max_length)
        small = SmallModel(model_config, proven, longest)
        unscaled = SmallModel(model_config, proven, ROW) if run_config.packing else small
    except ValueError as error:
        if run_config.packing:
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
            f"{history:.3g} nats per token, on a tiny model of type {kind!r}, since its positions "
            f"adapt to the longest row so far; use --max-length {known or 'as in its training'}"
        )
    if small.sees_later_tokens():
        raise UserError(
            f"model must be causal; got model type {kind!r}, where a token's output depends on "
            "those after it; is its config a decoder's?"
        )
    if run_config.packing:
        packed = PackedRows(small, unscaled, min(run_config.max_length, LONG))
        return _decide_packing(packed, model_config, run_config, attention, dtype)
    return _decide_padding(small, run_config)


def _check_varlen(model_config: Any, run_config: RunConfig) -> None:
    """Raise UserError unless the kernel of variable length computes what a model asks for.

    Models ask by arguments of their own for windows, soft caps, sinks or sparse patterns; one that
    is ignored changes the losses of a tiny model, alone in its row.
    """
    longest = padded_width(run_config.max_length)
    own = SmallModel(model_config, VARLEN, longest)
    if run_config.base_dropout is not False:
        own.try_training()
    usual = SmallModel(model_config, "", longest)
    difference = max(map(distance, own.alone, usual.alone))
    if difference > TOLERANCE:
        raise UserError(
            f"attention {VARLEN!r} must compute what the model's own does; got losses that differ "
            f"by up to {difference:.3g} nats per token, on a tiny model of type "
            f"{model_config.model_type!r}; use --attention sdpa"
        )


def _decide_packing(
    packed: PackedRows, model_config: Any, run_config: RunConfig, attention: str, dtype: torch.dtype
) -> Separation:
    by_positions = packed.difference()
    if by_positions <= TOLERANCE:
        return Separation(
            text="" if takes_lengths(attention) else _dense_text(attention, run_config)
        )
    takes_masks = not takes_lengths(attention)
    for form in mask_forms(attention) if takes_masks else ():
        for by_layer_type in (False, True):
            tried = example_masks(packed.scaled.model.config, form, by_layer_type)
            if tried is None:
                continue
            if packed.difference(tried) <= TOLERANCE:
                form_of_run = None if form is None else dtype
                mask = example_masks(model_config, form_of_run, by_layer_type)
                assert mask is not None
                return Separation(
                    mask, text=_mask_text(packed.scaled, mask, run_config, by_positions)
                )
    repair = "use --no-packing" + ("" if takes_masks else ", or try --attention sdpa")
    raise UserError(
        f"packing must not change losses; got up to {by_positions:.3g} nats per token, on a tiny "
        f"model of type {model_config.model_type!r}, between examples packed and alone; {repair}"
    )


def _mask_text(
    small: SmallModel, mask: MaskRule, run_config: RunConfig, by_positions: float
) -> str:
    return (
        f"Packed examples get a block-diagonal attention mask: {_kind(small)} does not keep them "
        f"apart by positions (losses differ by up to {by_positions:.3g} nats per token). "
        + _cost_text(mask, run_config)
    )


def _dense_text(attention: str, run_config: RunConfig) -> str:
    form = torch.float32 if attention == "eager" else None
    return (
        f"Packed examples are told apart by an attention mask, which {attention} gets from their "
        "positions. " + _cost_text(MaskRule(EXAMPLES, additive=form), run_config)
    )


def _cost_text(mask: MaskRule, run_config: RunConfig) -> str:
    width = run_config.max_length
    num_rows = run_config.micro_batch_tokens // width or run_config.micro_batch
    return (
        f"The mask takes {mask.num_bytes(num_rows, width) / 1e6:,.1f} MB for a micro batch of "
        f"{num_rows} x {width} tokens, and attention with a mask is slower"
    )


def _decide_padding(small: SmallModel, run_config: RunConfig) -> Separation:
    without_mask = small.difference(PADDED)
    if without_mask <= TOLERANCE:
        return Separation()
    found = (
        f"padding changes the losses of {_kind(small)} by up to {without_mask:.3g} nats per token"
    )
    if small.difference_or_inf(PADDED, mask=MaskRule(PADDING)) <= TOLERANCE:
        return Separation(
            MaskRule(PADDING), text=f"Padded rows get an attention mask, which is slower: {found}"
        )
    if run_config.micro_batch == 1 or small.difference(EQUAL, multiple=1) <= TOLERANCE:
        return Separation(
            equal_lengths=True,
            text="Only examples of equal length share a micro batch, so micro batches are smaller "
            f"and more: {found}",
        )
    raise UserError(
        "examples of a micro batch must not change each other's losses; got up to "
        f"{without_mask:.3g} nats per token on a tiny model of type {small.model_type!r}; use "
        "--micro-batch 1"
    )


def _kind(small: SmallModel) -> str:
    return f"model type {small.model_type!r}"
