"""Training without fp32 masters: parameters, gradients and AdamW's moments have the model's dtype.

The trainer always keeps fp32 masters, and DeepSpeed at stage 0 wants them too. So this does what a
plain loop does: `torch.optim.AdamW` on the model's own parameters. In fp32 it computes what the
trainer computes, so that in half precision only the masters differ.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diablo_ds.config.run import RunConfig
from diablo_ds.data.batches import MicroBatch
from diablo_ds.model.loss_head import loss_of
from diablo_ds.zero.engine import Outcome


class EngineWithoutMasters:
    """What `diablo_ds.training.step.train_step` needs of an engine, on one rank.

    Args:
        model: a causal LM of transformers, on its device.
        parameters: those that are trained, by name.
        run_config: gives AdamW's settings and the norm to clip to.
    """

    loss_scale: float | None = None

    def __init__(
        self, model: Any, parameters: Mapping[str, nn.Parameter], run_config: RunConfig
    ) -> None:
        self.module = model
        self.deltas = dict(parameters)
        self.device = torch.device(model.device)
        self._max_grad_norm = run_config.max_grad_norm
        model.enable_input_require_grads()
        self._optimizer = torch.optim.AdamW(
            list(parameters.values()),
            lr=run_config.learning_rate,
            betas=(run_config.beta1, run_config.beta2),
            eps=run_config.epsilon,
            weight_decay=run_config.weight_decay,
        )

    def loss(self, batch: MicroBatch) -> Tensor:
        """Return the loss of a micro batch, summed over its targets, as ``[]`` in fp32."""
        return loss_of(self.module, batch)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a loss."""
        loss.backward()

    @contextlib.contextmanager
    def one_reduction(self) -> Iterator[None]:
        """Do nothing: there is no other rank."""
        yield

    def skip_unless_finite(self, loss_sum: Tensor) -> None:
        """Do nothing: `step` is given the loss."""

    def step(self, learning_rate: float, loss_sum: Tensor, message: Sequence[float]) -> Outcome:
        """Clip the gradients, update, drop the gradients; nothing where a number is not finite."""
        grads = [p.grad for p in self.deltas.values() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads))
        if math.isfinite(norm) and math.isfinite(float(loss_sum)):
            if self._max_grad_norm:
                torch.nn.utils.clip_grad_norm_(self.deltas.values(), self._max_grad_norm)
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return Outcome(norm, [float(loss_sum)], [list(message)])

    def close(self) -> None:
        """Drop the optimizer's state."""
        self._optimizer.state.clear()
