"""Answers to many prompts at once: rows leave a batch as they end, and others take their places.

Prompts are sorted by length and put through the model in groups of similar ones, padded on the
left. Their caches are joined, and each further forward adds a token to every row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diablo_ds.model import batch_cache
from diablo_ds.model.batch_rules import BatchLimits, BatchRules, left_padded
from diablo_ds.model.forwards import Forwards
from diablo_ds.model.requests import Generation, GenerationRequest
from diablo_ds.model.sampling import choose_tokens, draws
from diablo_ds.model.stop_strings import StopStrings

REFILL_SHARE = 0.25
"""Share of a batch's rows that have ended before others are put in their places: to join them all
cached keys and values are copied."""


@dataclass
class _Row:
    """A prompt and as much of its answer as there is."""

    index: int
    """Of the request."""
    request: GenerationRequest
    stops: StopStrings
    uniforms: Tensor | None
    """Random numbers of its draws; None for the likeliest tokens."""
    tokens: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.request.prompt) + len(self.tokens)

    @property
    def most(self) -> int:
        """Its length at the end, at most."""
        return len(self.request.prompt) + self.request.max_new_tokens

    def next_uniform(self) -> float | None:
        """Return the random number of its next token; None for the likeliest token."""
        return None if self.uniforms is None else float(self.uniforms[len(self.tokens)])

    def take(self, token: int) -> Generation | None:
        """Add a token; return the answer if it ends here."""
        if token in self.request.end_ids:
            return Generation(tuple(self.tokens), self.stops.text(self.tokens), "end")
        self.tokens.append(token)
        text = self.stops.text_before_stop(self.tokens)
        if text is not None:
            return Generation(tuple(self.tokens), text, "stop")
        if len(self.tokens) == self.request.max_new_tokens:
            return Generation(tuple(self.tokens), self.stops.text(self.tokens), "length")
        return None


@dataclass
class _Batch:
    """Rows and the cache of their tokens, but for the last one of each."""

    rows: list[_Row] = field(default_factory=list)
    cache: Any = None
    width: int = 0
    """Columns of the cache, padding included."""


class _Generator:
    def __init__(
        self,
        forwards: Forwards,
        on_result: Callable[[int, Generation], object],
        limits: BatchLimits,
        rules: BatchRules,
    ) -> None:
        self.forwards, self.on_result = forwards, on_result
        self.limits, self.rules = limits, rules
        self.batch = _Batch()

    def run(self, rows: list[_Row]) -> None:
        waiting = sorted(
            rows, key=lambda row: (len(row.request.prompt), row.request.prompt, row.index)
        )
        if not self.rules.caches:
            for row in waiting:
                while not self._take([row], self._logits_of_all([row]))[0]:
                    pass
            return
        while waiting or self.batch.rows:
            if waiting and self._has_room():
                self._fill(waiting)
            if self.batch.rows:
                self._step()

    # --- rows join -------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        num_rows = len(self.batch.rows)
        if not num_rows:
            return True
        if not self.rules.pads_left or not batch_cache.can_join(self.batch.cache):
            return False
        return num_rows <= self.limits.rows * (1 - REFILL_SHARE)

    def _fill(self, waiting: list[_Row]) -> None:
        """Put the longest of the rows that wait into the batch, as many as there is room for."""
        parts = [self.batch] if self.batch.rows else []
        while group := self._next_group(waiting, [row for part in parts for row in part.rows]):
            part = self._prefill(group)
            if part.rows:
                parts.append(part)
            if not self.rules.pads_left:
                break
            if part.cache is not None and not batch_cache.can_join(part.cache):
                break
        if not parts:
            self.batch = _Batch()
            return
        rows = [row for part in parts for row in part.rows]
        room = max(row.request.max_new_tokens - len(row.tokens) for row in rows)
        cache = parts[0].cache
        if len(parts) > 1:
            cache = batch_cache.join([part.cache for part in parts], room)
        else:
            batch_cache.make_room(cache, room)
        self.batch = _Batch(rows, cache, max(part.width for part in parts))

    def _next_group(self, waiting: list[_Row], running: list[_Row]) -> list[_Row]:
        """Take rows of similar length for one forward from those that wait, the longest first."""
        group: list[_Row] = []
        num_prompts = 0  # several samples of one are put through once
        while waiting:
            row = waiting[-1]
            width = len((group or [row])[0].request.prompt)
            is_new = not group or group[-1].request.prompt != row.request.prompt
            most = max(r.most for r in (row, *running, *group))
            count = 1 + len(group) + len(running)
            if count > 1 and (count > self.limits.rows or count * most > self.limits.cache_tokens):
                break
            if group and (num_prompts + is_new) * width > self.limits.forward_tokens:
                break
            is_equal = len(row.request.prompt) == width
            if not self.rules.pads_left and not is_equal:
                break
            group.append(waiting.pop())
            num_prompts += is_new
        return group

    def _prefill(self, rows: list[_Row]) -> _Batch:
        prompts = list(dict.fromkeys(row.request.prompt for row in rows))
        ids, mask, positions = left_padded(prompts, self.forwards.device)
        logits, cache = self.forwards(
            ids, mask=mask if self.rules.pads_left else None, positions=positions, keep=1
        )
        if len(prompts) < len(rows):
            places = torch.tensor([prompts.index(row.request.prompt) for row in rows])
            places = places.to(logits.device)
            logits, cache = logits[places], batch_cache.with_rows(cache, places)
        batch = _Batch(rows, cache, ids.shape[1])
        self._leave(batch, self._take(rows, logits[:, -1]))
        return batch

    # --- a token for each row --------------------------------------------------------------------

    def _step(self) -> None:
        batch, device = self.batch, self.forwards.device
        last = torch.tensor([[row.tokens[-1]] for row in batch.rows], device=device)
        lengths = torch.tensor([[row.length] for row in batch.rows], device=device)
        batch.width += 1
        mask = None
        if self.rules.pads_left:
            columns = torch.arange(batch.width, device=device)
            mask = (columns >= batch.width - lengths).long()  # [rows, width]
        outputs = self.forwards(last, mask=mask, positions=lengths - 1, cache=batch.cache, keep=1)
        self._leave(batch, self._take(batch.rows, outputs.logits[:, -1]))

    def _logits_of_all(self, rows: list[_Row]) -> Tensor:
        ids = torch.tensor([[*row.request.prompt, *row.tokens] for row in rows])
        outputs = self.forwards(ids.to(self.forwards.device), use_cache=False, keep=1)
        return outputs.logits[:, -1]

    def _take(self, rows: Sequence[_Row], logits: Tensor) -> list[bool]:
        """Give each row its next token; return for each whether it has ended.

        Args:
            rows: of the batch.
            logits: ``[rows, vocab]``.
        """
        chosen = choose_tokens(
            logits, [row.request for row in rows], [row.next_uniform() for row in rows]
        )
        ended = []
        for row, token in zip(rows, chosen, strict=True):
            answer = row.take(token)
            ended.append(answer is not None)
            if answer is not None:
                self.on_result(row.index, answer)
        return ended

    def _leave(self, batch: _Batch, ended: Sequence[bool]) -> None:
        """Take the rows that have ended out of a batch."""
        if not any(ended):
            return
        if all(ended):
            batch.rows, batch.cache, batch.width = [], None, 0
            return
        order = batch_cache.gaps_filled([not end for end in ended])
        batch.rows = [batch.rows[place] for place in order]
        batch_cache.keep_rows(batch.cache, order)
        if self.rules.pads_left and batch_cache.can_join(batch.cache):
            width = max(row.length for row in batch.rows) - 1
            batch_cache.drop_columns(batch.cache, batch.width - width)
            batch.width = width


def generate(
    forwards: Forwards,
    requests: Sequence[GenerationRequest],
    decode: Callable[[Sequence[int]], str],
    on_result: Callable[[int, Generation], object],
    *,
    limits: BatchLimits,
    rules: BatchRules,
) -> None:
    """Answer prompts.

    Args:
        forwards: of the model. Where ranks are in step, to be called inside `Forwards.together`.
        requests: in any order.
        decode: returns the text of tokens.
        on_result: called with the index of a request and its answer, as soon as it ends.
        limits: how large batches may be.
        rules: how rows of a batch are kept apart.
    """
    rows = [
        _Row(index, request, StopStrings(request.stops, request.prompt, decode), draws(request))
        for index, request in enumerate(requests)
    ]
    _Generator(forwards, on_result, limits, rules).run(rows)
