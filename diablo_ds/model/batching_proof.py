"""Which batches leave a model's answers as they are, found out on a tiny model of its kind.

Not every architecture can tell padding from tokens, or take up its cache with several tokens at
once; a rotary embedding may depend on the longest row. So each way to batch is tried: the loss of
each token has to be what it is when its example is alone, without a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diablo_ds.errors import UserError
from diablo_ds.model import batch_cache
from diablo_ds.model.batch_rules import BatchRules, left_padded
from diablo_ds.model.forwards import Forwards
from diablo_ds.model.separation_trials import EQUAL, PADDED, TOLERANCE, SmallModel, distance

_NUM_STEPS = 6
_LEFT, _JOINING, _STAYING = 4, 3, 2
"""Examples of unequal length: one that leaves the batch, one that joins it, one that stays."""


def prove_batching(model_config: Any, attention: str, max_length: int) -> BatchRules:
    """Return how a model's rows can be batched.

    Args:
        model_config: its Hugging Face config.
        attention: transformers' name of its attention.
        max_length: tokens of the longest row, the answer included.
    """
    try:
        small = SmallModel(model_config, attention, max_length)
    except UserError:
        return BatchRules(
            pads_left=False, caches=False, extends=False, shares_opening=False, pads_right=False
        )
    forwards = Forwards(small.model)
    pads_left = _holds(lambda: _difference_in_steps(forwards, small, padded=True))
    caches = pads_left or _holds(lambda: _difference_in_steps(forwards, small, padded=False))
    extends = caches and _holds(lambda: _difference_at_once(forwards, small, padded=pads_left))
    shares = pads_left and extends and _holds(lambda: _difference_behind_opening(forwards, small))
    return BatchRules(
        pads_left=pads_left,
        caches=caches,
        extends=extends,
        shares_opening=shares,
        pads_right=_holds(lambda: small.difference(PADDED)),
    )


def _holds(difference: Callable[[], float]) -> bool:
    try:
        return difference() <= TOLERANCE
    except Exception:  # whatever a model's code raises for a batch that it does not support
        return False


@torch.no_grad()
def _difference_in_steps(forwards: Forwards, small: SmallModel, *, padded: bool) -> float:
    """Put tokens through one by one while a row joins the batch and one leaves it."""
    members = [_LEFT, _STAYING] if padded else list(EQUAL[0] + EQUAL[1])
    groups = [members]
    caches, width = [], 0
    worst = 0.0
    for group in groups:
        cache, logits, columns = _prefill(forwards, small, group, padded)
        worst = max(worst, _worst(small, group, logits, step=0))
        caches.append(cache)
        width = max(width, columns)
        if padded and group is members and batch_cache.can_join(cache):
            groups.append([_JOINING])
    rows = [member for group in groups for member in group]
    cache = caches[0]
    if len(caches) > 1:
        cache = batch_cache.join(caches, _NUM_STEPS)
    else:
        batch_cache.make_room(cache, _NUM_STEPS)
    for step in range(1, _NUM_STEPS):
        ids, lengths = _next_tokens(small, rows, step)
        width += 1
        mask = (torch.arange(width) >= width - lengths).long() if padded else None
        logits, cache = forwards(ids, mask=mask, positions=lengths - 1, cache=cache, keep=1)
        worst = max(worst, _worst(small, rows, logits[:, -1], step=step))
        if step == _NUM_STEPS // 2:
            order = batch_cache.gaps_filled([place > 0 for place in range(len(rows))])
            rows = [rows[place] for place in order]
            batch_cache.keep_rows(cache, order)
            if padded and batch_cache.can_join(cache):
                columns = max(_num_prompt(small, row) for row in rows) + step
                batch_cache.drop_columns(cache, width - columns)
                width = columns
    return worst


@torch.no_grad()
def _difference_at_once(forwards: Forwards, small: SmallModel, *, padded: bool) -> float:
    """Put all tokens after the prompts through together, each prompt's twice."""
    rows = [_LEFT, _STAYING] if padded else list(EQUAL[0] + EQUAL[1])
    cache, _, width = _prefill(forwards, small, rows, padded)
    twice = torch.tensor([0, 0, 1, 1])
    rows = [rows[place] for place in twice.tolist()]
    parts = [_next_tokens(small, rows, step) for step in range(1, _NUM_STEPS)]
    ids = torch.cat([tokens for tokens, _ in parts], dim=1)
    lengths = torch.cat([part for _, part in parts], dim=1)
    mask = None
    if padded:
        starts = width - (lengths[:, :1] - 1)
        mask = (torch.arange(width + ids.shape[1]) >= starts).long()
    cache = batch_cache.with_rows(cache, twice)
    logits, _ = forwards(ids, mask=mask, positions=lengths - 1, cache=cache)
    steps = range(1, _NUM_STEPS)
    return max(_worst(small, rows, logits[:, step - 1], step=step) for step in steps)


@torch.no_grad()
def _difference_behind_opening(forwards: Forwards, small: SmallModel) -> float:
    """Put an opening through once, two rows of unequal length behind it, then one more token."""
    tokens, alone = small.examples[_LEFT].input_ids, small.alone[_LEFT]
    opening = len(tokens) // 3
    lengths = torch.tensor([[len(tokens) - 2], [len(tokens) - 2 - _NUM_STEPS]])
    mask = torch.ones(1, opening, dtype=torch.int64)
    first = torch.tensor([tokens[:opening]])
    cache = forwards(first, mask=mask, positions=torch.arange(opening)[None], keep=1).cache
    cache = batch_cache.with_rows(cache, torch.tensor([0, 0]))
    ids, own, positions = left_padded(
        [tokens[opening:length] for length in lengths[:, 0].tolist()], forwards.device
    )
    mask = torch.cat([mask.expand(2, -1), own], dim=1)
    logits, cache = forwards(ids, mask=mask, positions=positions + opening, cache=cache)
    last = torch.tensor([[tokens[length]] for length in lengths[:, 0].tolist()])
    mask = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
    more, _ = forwards(last, mask=mask, positions=lengths, cache=cache, keep=1)
    worst = 0.0
    for row, length in enumerate(lengths[:, 0].tolist()):
        known = torch.cat([logits[row, own[row] == 1], more[row, -1:]]).float().log_softmax(dim=-1)
        for column, place in enumerate(range(opening + 1, length + 2)):
            worst = max(worst, distance(-known[column, tokens[place]], alone[place - 1]))
    return worst


def _num_prompt(small: SmallModel, member: int) -> int:
    return len(small.examples[member].input_ids) - _NUM_STEPS


def _prefill(
    forwards: Forwards, small: SmallModel, members: Sequence[int], padded: bool
) -> tuple[Any, Tensor, int]:
    prompts = [small.examples[i].input_ids[: _num_prompt(small, i)] for i in members]
    ids, mask, positions = left_padded(prompts, forwards.device)
    outputs = forwards(ids, mask=mask if padded else None, positions=positions, keep=1)
    return outputs.cache, outputs.logits[:, -1], ids.shape[1]


def _next_tokens(small: SmallModel, members: Sequence[int], step: int) -> tuple[Tensor, Tensor]:
    """Return the token of each row at a step, and its length then; ``[rows, 1]`` each."""
    lengths = [_num_prompt(small, i) + step for i in members]
    tokens = [small.examples[i].input_ids[n - 1] for i, n in zip(members, lengths, strict=True)]
    return torch.tensor(tokens)[:, None], torch.tensor(lengths)[:, None]


def _worst(small: SmallModel, members: Sequence[int], logits: Tensor, *, step: int) -> float:
    """Return the largest difference of the loss of the token after a step."""
    worst = 0.0
    for member, row in zip(members, logits.float().log_softmax(dim=-1), strict=True):
        place = _num_prompt(small, member) + step
        loss = -row[small.examples[member].input_ids[place]]
        worst = max(worst, distance(loss, small.alone[member][place - 1]))
    return worst
