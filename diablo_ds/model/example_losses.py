"""Losses of single examples, by the code that computes a training's held-out loss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from diablo_ds.data.batches import MicroBatch, collate, to_device
from diablo_ds.data.labels import Example
from diablo_ds.model.batch_rules import BatchLimits, BatchRules, grouped
from diablo_ds.model.forwards import Forwards
from diablo_ds.model.loss import causal_lm_loss, count_targets
from diablo_ds.model.loss_head import LossHead, loss_of
from diablo_ds.model.requests import LossRequest, LossResult


def example_losses(
    forwards: Forwards,
    requests: Sequence[LossRequest],
    on_result: Callable[[int, LossResult], object],
    *,
    limits: BatchLimits,
    rules: BatchRules,
) -> None:
    """Compute the loss of each example.

    Args:
        forwards: of the model. Where ranks are in step, to be called inside `Forwards.together`.
        requests: in any order.
        on_result: called with the index of a request and its result.
        limits: how large batches may be.
        rules: how rows of a batch are kept apart.
    """
    head = forwards.module.get_output_embeddings()
    lengths = [len(request.input_ids) for request in requests]
    # A loss head never holds more logits than a chunk.
    costs = [0] * len(requests) if isinstance(head, LossHead) else lengths
    for group in grouped(lengths, costs, limits, equal_lengths=not rules.pads_right):
        rows = [[Example(list(requests[i].input_ids), list(requests[i].labels))] for i in group]
        batch = collate(rows, pad_id=0, multiple=1)
        for index, row, nats in zip(group, batch.labels, _losses(forwards, batch), strict=True):
            on_result(index, LossResult(nats, int(count_targets(row[None]))))


@torch.no_grad()
def _losses(forwards: Forwards, batch: MicroBatch) -> list[float]:
    """Return the loss of each row of a micro batch, summed over its targets."""
    head = forwards.module.get_output_embeddings()
    with forwards.one_forward():
        if isinstance(head, LossHead):
            with _losses_of_targets(head) as chunks:
                loss_of(forwards.model, batch)
            losses = torch.cat([*chunks, torch.zeros(0, device=forwards.device)])
            counts = [int(count_targets(row[None])) for row in batch.labels]
            return [float(part.double().sum()) for part in losses.split(counts)]
        inputs = to_device(batch.model_inputs(), forwards.device)
        logits = forwards.model(**inputs, use_cache=False).logits
    labels = batch.labels.to(forwards.device)
    return [float(causal_lm_loss(logits[i : i + 1], labels[i : i + 1])) for i in range(len(labels))]


@contextlib.contextmanager
def _losses_of_targets(head: LossHead) -> Iterator[list[Tensor]]:
    """Collect the loss of each target, ``[rows]`` fp32 for each chunk of the head, in order."""
    chunks: list[Tensor] = []

    def collect(
        logits: Tensor, target: Tensor, gain: float, with_grad: bool
    ) -> tuple[Tensor, Tensor]:
        values = logits.float()
        losses = values.logsumexp(dim=1) - values.gather(1, target)[:, 0]
        chunks.append(losses)
        return losses.sum(), logits

    before = head.linear.softmax_loss
    head.compute_softmax_by(collect)
    try:
        yield chunks
    finally:
        head.compute_softmax_by(before)
