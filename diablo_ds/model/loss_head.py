"""The loss head: how a model returns the loss of a micro batch without ever holding all logits.

1. A causal model ends in a head, a linear layer from hidden states to logits. For a long vocabulary
   the logits ``[batch, seq, vocab]`` are the largest tensor of a step.
2. `install_loss_head` puts a `LossHead` in its place, which computes loss and gradient chunk by
   chunk (`diablo_ds.model.loss`). It does so only where the model returns its head's output
   unchanged, so that no number changes.
3. A model's forward passes hidden states to the head and no labels. `loss_of` therefore leaves the
   labels with the head for the duration of one forward.
4. With labels the head returns the loss, ``[]``, in place of the logits. The model hands it on as
   ``logits``, through its own forward and DeepSpeed's, whose hooks have to see it.
5. `loss_of` takes it from there; no other module calls it logits. Where the head could not be
   replaced, `loss_of` computes the same sum from the full logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diablo_ds.data.batches import MicroBatch, to_device
from diablo_ds.model.attention import attends_by_variable_length
from diablo_ds.model.loss import (
    SoftmaxLoss,
    causal_lm_loss,
    find_targets,
    grad_gain,
    linear_cross_entropy,
)


def loss_of(model: Any, batch: MicroBatch) -> Tensor:
    """Return the loss of a micro batch, summed over its target tokens.

    Where the model's attention tells packed examples apart by their lengths, the batch is passed on
    as one row, with the edges of its examples.

    Args:
        model: a Hugging Face causal model, or DeepSpeed's engine around it.
        batch: on the CPU, where its targets are found without waiting for a device.

    Returns:
        ``[]``, fp32, on the model's device.
    """
    module, device = getattr(model, "module", model), model.device
    if batch.position_ids is not None and attends_by_variable_length(module):
        batch = batch.as_one_row()
        inputs = batch.variable_length_inputs()
    else:
        inputs = batch.model_inputs()
    inputs = to_device(inputs, device)
    head = module.get_output_embeddings()
    if isinstance(head, LossHead):
        with head.computing_loss(batch.labels):
            loss: Tensor = model(**inputs).logits  # what the head returned
            return loss
    logits = model(**inputs).logits  # [micro_batch, seq, vocab]
    return causal_lm_loss(logits, batch.labels)


def install_loss_head(model: Any, meta_model: Any) -> bool:
    """Let the model's head compute the loss chunk by chunk, where the head's output is the logits.

    Some models scale or cap what their head returns; those keep full logits.

    Args:
        model: the model; its head is frozen.
        meta_model: the same model on the meta device, unchanged on return; may be ``model`` itself.

    Returns:
        Whether the head was replaced.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:  # none, or a target of the adapter
        return False
    if not _returns_its_heads_output(meta_model, head.in_features, head.out_features):
        return False
    model.set_output_embeddings(LossHead(head))
    return True


class LossHead(nn.Module):
    """A model's head that returns the loss instead of the logits, while `loss_of` asks it to.

    Two modules, for ZeRO-3: the inner one owns the weight, which is gathered inside its forward
    only, and there both the loss and its gradient are computed. The inner one is not part of the
    autograd graph, so the backward does not need the weight again and gathers nothing.

    Args:
        head: the model's head, frozen, partitioned or not; its parameters are taken over.
    """

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.linear = _HeadWeight(head)
        self._labels: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """The head's weight, ``[vocab, hidden_size]``."""
        return self.linear.weight

    def compute_softmax_by(self, softmax_loss: SoftmaxLoss | None) -> None:
        """Compute loss and gradient from logits by another function; None for the default."""
        self.linear.softmax_loss = softmax_loss

    @contextmanager
    def computing_loss(self, labels: Tensor) -> Iterator[None]:
        """Return the summed loss to ``labels`` ``[batch, seq]`` from forwards inside the block."""
        self._labels = labels
        try:
            yield
        finally:
            self._labels = None

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[batch, seq, hidden_size]`` to logits or, inside `computing_loss`, to ``[]``."""
        if self._labels is None:
            logits: Tensor = self.linear(input)
            return logits
        places, targets = to_device(find_targets(self._labels), input.device)
        rows = input.flatten(0, 1).index_select(0, places)  # [num_targets, hidden_size]
        with_grad = torch.is_grad_enabled() and rows.requires_grad
        loss: Tensor
        loss, grad = self.linear(rows.detach(), targets, with_grad)
        if with_grad:
            loss = _WithGradient.apply(rows, loss, grad)  # type: ignore[no-untyped-call]
        return loss


class _HeadWeight(nn.Module):
    """Owner of a head's parameters: rows to logits, or to the loss and its gradient."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.weight = head.weight
        self.bias = head.bias
        self.softmax_loss: SoftmaxLoss | None = None

    def forward(self, input: Tensor, targets: Tensor | None = None, with_grad: bool = False) -> Any:
        if targets is None:
            return F.linear(input, self.weight, self.bias)
        return linear_cross_entropy(
            input,
            targets,
            self.weight,
            self.bias,
            with_grad=with_grad,
            softmax_loss=self.softmax_loss,
        )


class _WithGradient(torch.autograd.Function):
    """A loss whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        scale = grad_loss / grad_gain(grad.dtype)
        return (grad.float() * scale).to(grad.dtype), None, None


# --- does a model return its head's output unchanged? ---------------------------------------------


class _BodyOutput:
    """What `_EmptyBody` returns: hidden states, and None for everything else."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int) -> Any:
        return self.last_hidden_state if index == 0 else None

    def __getattr__(self, name: str) -> None:
        return None


class _EmptyBody(nn.Module):
    """Stands in for all layers below the head, so that a forward consists of the head's part."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    def forward(self, *args: Any, **inputs: Any) -> _BodyOutput:
        return _BodyOutput(torch.empty(1, 2, self.hidden_size, device="meta"))


def _returns_its_heads_output(meta_model: Any, hidden_size: int, vocab_size: int) -> bool:
    """Run a forward without layers: its logits have to be the very tensor that the head returned.

    A model that casts, scales, caps or cuts its logits returns another tensor.
    """
    outputs: list[Tensor] = []
    probe = nn.Linear(hidden_size, vocab_size, device="meta")
    probe.register_forward_hook(lambda module, args, output: outputs.append(output))
    with _replaced(meta_model, probe, _EmptyBody(hidden_size)):
        try:
            result = meta_model(input_ids=torch.zeros(1, 2, dtype=torch.int64, device="meta"))
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
            return False  # a model of another build
    return len(outputs) == 1 and result.logits is outputs[0]


@contextmanager
def _replaced(model: Any, head: nn.Module, body: nn.Module) -> Iterator[None]:
    name = model.base_model_prefix
    head_before, body_before = model.get_output_embeddings(), getattr(model, name, None)
    model.set_output_embeddings(head)
    if body_before is not None:
        setattr(model, name, body)
    try:
        yield
    finally:
        model.set_output_embeddings(head_before)
        if body_before is not None:
            setattr(model, name, body_before)
