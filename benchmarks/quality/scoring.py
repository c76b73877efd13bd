"""Held-out examples: the loss of each and, from the same forwards, the choices among answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.quality.examples import Choice
from diablo_ds.data.batches import MicroBatch, collate, to_device
from diablo_ds.data.examples import Examples
from diablo_ds.data.labels import IGNORE_LABEL
from diablo_ds.data.masks import NO_MASK, MaskRule
from diablo_ds.model.loss_head import LossHead


class Scores(NamedTuple):
    """What a model makes of held-out examples."""

    nats: list[float]
    """Loss of each example, summed over its target tokens; may be NaN."""
    num_targets: int
    """Target tokens of all examples."""
    answers: list[int]
    """For each of the first examples: 1 where the correct choice is the most likely, else 0."""

    @property
    def loss(self) -> float:
        """Mean loss per target token, in nats."""
        return sum(self.nats) / max(1, self.num_targets)


@torch.no_grad()
def score(
    model: Any,
    examples: Examples,
    choices: Sequence[Choice],
    *,
    count: int,
    tokens: int,
    pad_id: int,
    mask: MaskRule = NO_MASK,
    equal_lengths: bool = False,
) -> Scores:
    """Put held-out examples through a model.

    Args:
        model: a causal LM of transformers; left in the mode that it had.
        examples: the held-out ones.
        choices: of the first examples, as many as are scored.
        count: how many examples, from the first on.
        tokens: of a forward, padding included.
        pad_id: token for padding.
        mask: how examples of a micro batch are kept apart.
        equal_lengths: whether only examples of equal length may share one.
    """
    nats, answers, num_targets = [0.0] * count, [0] * len(choices), 0
    was_training = model.training
    model.eval()
    for group in _groups(examples.lengths[:count].tolist(), tokens, equal_lengths=equal_lengths):
        rows = [[examples[index]] for index in group]
        batch = collate(rows, pad_id=pad_id, mask=mask, multiple=1 if equal_lengths else 8)
        predicted = batch.labels[:, 1:]
        places = torch.nonzero(predicted != IGNORE_LABEL)  # [num_targets, 2]
        logits = _logits(model, batch, places)  # [num_targets, vocab], fp32
        targets = predicted[places[:, 0], places[:, 1]].to(logits.device)
        losses = logits.logsumexp(dim=1) - logits.gather(1, targets[:, None])[:, 0]
        sums = torch.zeros(len(group), dtype=torch.float64)
        sums.index_add_(0, places[:, 0], losses.double().cpu())
        num_targets += len(places)
        numbers = {tuple(place): row for row, place in enumerate(places.tolist())}
        for row, index in enumerate(group):
            nats[index] = float(sums[row])
            if index < len(choices):
                choice = choices[index]
                known = logits[numbers[row, choice.place - 1], list(choice.candidates)]
                answers[index] = int(int(known.argmax()) == choice.correct)
    model.train(was_training)
    return Scores(nats, num_targets, answers)


def _logits(model: Any, batch: MicroBatch, places: Tensor) -> Tensor:
    """Return the logits at some positions, ``[places, vocab]`` in fp32.

    Where the head's output is the logits, it is given those positions alone.
    """
    inputs = to_device(batch.model_inputs(), model.device)
    places = places.to(model.device)
    head = model.get_output_embeddings()
    if isinstance(head, LossHead):
        hidden = getattr(model, model.base_model_prefix)(**inputs)[0]  # [batch, seq, hidden_size]
        logits: Tensor = head(hidden[places[:, 0], places[:, 1]])
    else:
        logits = model(**inputs).logits[places[:, 0], places[:, 1]]
    return logits.float()


def _groups(lengths: Sequence[int], tokens: int, *, equal_lengths: bool) -> list[list[int]]:
    """Cut examples into batches of similar length, the longest first."""
    groups: list[list[int]] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        fits = bool(groups) and (len(groups[-1]) + 1) * width <= tokens
        if not fits or (equal_lengths and lengths[index] != width):
            groups.append([])
            width = lengths[index] if equal_lengths else -(-lengths[index] // 8) * 8
        groups[-1].append(index)
    return groups
