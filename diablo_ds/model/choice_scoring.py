"""Log-likelihoods of continuations: a prompt is put through the model once for all of its own.

What all continuations of a prompt begin with is put through together with it. It predicts the first
token in which they differ, so that choices of a single token need no other forward. What follows
that token is put through in a second one, with the cache of the first. What all prompts begin with,
such as a template's, is put through once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from diablo_ds.model import batch_cache
from diablo_ds.model.batch_rules import BatchLimits, BatchRules, grouped, left_padded
from diablo_ds.model.forwards import Forwards
from diablo_ds.model.requests import ChoiceRequest, ChoiceResult

LEAST_OPENING = 8
"""Tokens that all prompts begin with, from which on they are put through apart."""


@dataclass(frozen=True)
class _Opening:
    """What all prefixes begin with, put through the model."""

    length: int
    cache: Any = None
    """Of one row; None where the length is 0."""


@dataclass(frozen=True)
class _Prefix:
    """A prompt with what its continuations share, and what they do not."""

    tokens: tuple[int, ...]
    shared: tuple[int, ...]
    """Tokens that all continuations begin with; the last of ``tokens``."""
    suffixes: tuple[tuple[int, ...], ...]
    """The rest of each continuation; empty for one that all others begin with."""

    @property
    def num_logits(self) -> int:
        """Positions whose logits are needed: those that predict shared and next tokens."""
        return len(self.shared) + 1


def score_choices(
    forwards: Forwards,
    requests: Sequence[ChoiceRequest],
    on_result: Callable[[int, ChoiceResult], object],
    *,
    limits: BatchLimits,
    rules: BatchRules,
) -> None:
    """Score the continuations of prompts.

    Args:
        forwards: of the model. Where ranks are in step, to be called inside `Forwards.together`.
        requests: in any order.
        on_result: called with the index of a request and its result.
        limits: how large batches may be.
        rules: how rows of a batch are kept apart.
    """
    if not (rules.caches and rules.extends):
        _score_alone(forwards, requests, on_result, limits, rules)
        return
    prefixes = [_prefix(request) for request in requests]
    opening = _put_opening(forwards, prefixes) if rules.shares_opening else _Opening(0)
    widest = max((len(prefix.tokens) for prefix in prefixes), default=1)
    groups = grouped(
        [len(prefix.tokens) - opening.length for prefix in prefixes],
        [prefix.num_logits for prefix in prefixes],
        limits,
        equal_lengths=not rules.pads_left,
        most_rows=max(1, limits.cache_tokens // widest),
    )
    for group in groups:
        members = [prefixes[index] for index in group]
        results = _score_group(forwards, members, limits, rules, opening)
        for index, result in zip(group, results, strict=True):
            on_result(index, result)


def _put_opening(forwards: Forwards, prefixes: Sequence[_Prefix]) -> _Opening:
    """Put through what several prefixes begin with, up to where logits are needed of any."""
    if len(prefixes) < 2:
        return _Opening(0)
    first = min(prefixes, key=lambda prefix: prefix.tokens).tokens
    last = max(prefixes, key=lambda prefix: prefix.tokens).tokens
    common = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    )
    length = min(common, *(len(prefix.tokens) - prefix.num_logits for prefix in prefixes))
    if length < LEAST_OPENING:
        return _Opening(0)
    ids, mask, positions = left_padded([first[:length]], forwards.device)
    return _Opening(length, forwards(ids, mask=mask, positions=positions, keep=1).cache)


def _prefix(request: ChoiceRequest) -> _Prefix:
    columns = zip(*request.continuations, strict=False)
    shared = tuple(tokens[0] for tokens in takewhile(lambda tokens: len(set(tokens)) == 1, columns))
    suffixes = tuple(c[len(shared) :] for c in request.continuations)
    return _Prefix((*request.prompt, *shared), shared, suffixes)


def _score_group(
    forwards: Forwards,
    prefixes: Sequence[_Prefix],
    limits: BatchLimits,
    rules: BatchRules,
    opening: _Opening,
) -> list[ChoiceResult]:
    device = forwards.device
    own = [prefix.tokens[opening.length :] for prefix in prefixes]
    ids, mask, positions = left_padded(own, device)
    cache = None
    if opening.length:
        mask = torch.cat([mask.new_ones(len(prefixes), opening.length), mask], dim=1)
        rows = torch.zeros(len(prefixes), dtype=torch.int64, device=device)
        cache = batch_cache.with_rows(opening.cache, rows)
    keep = max(prefix.num_logits for prefix in prefixes)
    # Suffixes of several tokens, as (prefix, choice); the last token predicts nothing.
    longer = [
        (row, choice)
        for row, prefix in enumerate(prefixes)
        for choice, suffix in enumerate(prefix.suffixes)
        if len(suffix) > 1
    ]
    outputs = forwards(
        ids,
        mask=mask if rules.pads_left else None,
        positions=positions + opening.length,
        cache=cache,
        use_cache=bool(longer or opening.length),
        keep=keep,
    )
    scores = _Scores(prefixes)
    places: list[tuple[int, int, int]] = []  # row, column, token
    owners: list[tuple[int, int]] = []
    for row, prefix in enumerate(prefixes):
        for choice, suffix in enumerate(prefix.suffixes):
            known = (*prefix.shared, *suffix[:1])
            first = keep - prefix.num_logits
            places += [(row, first + column, token) for column, token in enumerate(known)]
            owners += [(row, choice)] * len(known)
    scores.add(outputs.logits, places, owners)
    if longer:
        lengths = [len(prefix.tokens) for prefix in prefixes]
        _score_suffixes(forwards, outputs.cache, mask, lengths, longer, scores, limits, rules)
    return scores.results()


def _score_suffixes(
    forwards: Forwards,
    cache: Any,
    mask: Tensor,
    lengths: Sequence[int],
    longer: Sequence[tuple[int, int]],
    scores: _Scores,
    limits: BatchLimits,
    rules: BatchRules,
) -> None:
    """Add what follows the first token of each suffix, with the cache of the prefixes.

    ``mask`` is of that cache, ``[prefixes, columns]``, ``lengths`` has the tokens of each prefix,
    and ``longer`` the suffixes, as (prefix, choice).
    """
    inputs = [scores.prefixes[row].suffixes[choice][:-1] for row, choice in longer]
    widths = list(map(len, inputs))
    columns_of_all = mask.shape[1] + max(widths)
    groups = grouped(
        widths,
        widths,
        limits,
        equal_lengths=False,
        most_rows=max(1, limits.cache_tokens // columns_of_all),
    )
    for group in groups:
        rows = torch.tensor([longer[i][0] for i in group], device=forwards.device)
        width = max(len(inputs[i]) for i in group)
        ids = [[*inputs[i], *[0] * (width - len(inputs[i]))] for i in group]
        starts = torch.tensor([[lengths[longer[i][0]]] for i in group], device=forwards.device)
        columns = torch.arange(width, device=forwards.device)
        whole = torch.cat([mask[rows], mask.new_ones(len(group), width)], dim=1)
        outputs = forwards(
            torch.tensor(ids, device=forwards.device),
            mask=whole if rules.pads_left else None,
            positions=starts + columns,
            cache=batch_cache.with_rows(cache, rows),
        )
        places, owners = [], []
        for place, i in enumerate(group):
            row, choice = longer[i]
            targets = scores.prefixes[row].suffixes[choice][1:]
            places += [(place, column, token) for column, token in enumerate(targets)]
            owners += [longer[i]] * len(targets)
        scores.add(outputs.logits, places, owners)


class _Scores:
    """Sums of log-likelihoods by prefix and choice."""

    def __init__(self, prefixes: Sequence[_Prefix]) -> None:
        self.prefixes = prefixes
        self._nats = [[0.0] * len(prefix.suffixes) for prefix in prefixes]
        self._is_greedy = [[True] * len(prefix.suffixes) for prefix in prefixes]

    def add(
        self,
        logits: Tensor,
        places: Sequence[tuple[int, int, int]],
        owners: Sequence[tuple[int, int]],
    ) -> None:
        """Add the tokens that some logits predict.

        Args:
            logits: ``[batch, seq, vocab]``.
            places: row and column of the logits, and the token that they predict.
            owners: the prefix and choice that each token belongs to.
        """
        nats, is_likeliest = token_log_likelihoods(logits, places)
        for (row, choice), value, is_best in zip(owners, nats, is_likeliest, strict=True):
            self._nats[row][choice] += value
            self._is_greedy[row][choice] &= is_best

    def results(self) -> list[ChoiceResult]:
        """Return the result of each prefix."""
        pairs = zip(self._nats, self._is_greedy, strict=True)
        return [ChoiceResult(tuple(nats), tuple(is_greedy)) for nats, is_greedy in pairs]


def token_log_likelihoods(
    logits: Tensor, places: Sequence[tuple[int, int, int]]
) -> tuple[list[float], list[bool]]:
    """Return the log-likelihood of tokens in nats, and whether each is the likeliest.

    Args:
        logits: ``[batch, seq, vocab]``.
        places: row and column of the logits, and the token that they predict; one may occur often.
    """
    rows = list(dict.fromkeys((row, column) for row, column, _ in places))
    number = {place: i for i, place in enumerate(rows)}
    index = torch.tensor(rows, device=logits.device)
    needed = logits[index[:, 0], index[:, 1]].float()  # [places, vocab]
    wanted = torch.tensor(
        [(number[row, column], token) for row, column, token in places], device=logits.device
    )
    values = needed[wanted[:, 0], wanted[:, 1]] - needed.logsumexp(dim=-1)[wanted[:, 0]]
    is_likeliest = needed.argmax(dim=-1)[wanted[:, 0]] == wanted[:, 1]
    return values.double().tolist(), is_likeliest.tolist()


def _score_alone(
    forwards: Forwards,
    requests: Sequence[ChoiceRequest],
    on_result: Callable[[int, ChoiceResult], object],
    limits: BatchLimits,
    rules: BatchRules,
) -> None:
    """Put each continuation through the model with its prompt, without a cache."""
    rows = [(i, c) for i, r in enumerate(requests) for c in range(len(r.continuations))]
    inputs = [(*requests[i].prompt, *requests[i].continuations[c]) for i, c in rows]
    targets = [requests[i].continuations[c] for i, c in rows]
    groups = grouped(
        list(map(len, inputs)),
        [len(target) + 1 for target in targets],
        limits,
        equal_lengths=not rules.pads_left,
    )
    nats = [[0.0] * len(request.continuations) for request in requests]
    is_greedy = [[True] * len(request.continuations) for request in requests]
    missing = [len(request.continuations) for request in requests]
    for group in groups:
        ids, mask, positions = left_padded([inputs[i] for i in group], forwards.device)
        keep = max(len(targets[i]) for i in group) + 1
        outputs = forwards(
            ids,
            mask=mask if rules.pads_left else None,
            positions=positions,
            use_cache=False,
            keep=keep,
        )
        for place, i in enumerate(group):
            first = keep - 1 - len(targets[i])
            places = [(place, first + n, token) for n, token in enumerate(targets[i])]
            values, best = token_log_likelihoods(outputs.logits, places)
            request, choice = rows[i]
            nats[request][choice], is_greedy[request][choice] = sum(values), all(best)
            missing[request] -= 1
            if not missing[request]:
                on_result(request, ChoiceResult(tuple(nats[request]), tuple(is_greedy[request])))
