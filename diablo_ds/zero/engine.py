"""What training does with the model that DeepSpeed runs, in one class without a DeepSpeed name."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diablo_ds.data.batches import MicroBatch, to_device
from diablo_ds.model.attention import attends_by_variable_length
from diablo_ds.model.loss import LossHead, causal_lm_loss
from diablo_ds.ranks import distributed
from diablo_ds.zero import optimizer_state, traffic
from diablo_ds.zero.gradients import one_gradient_reduction
from diablo_ds.zero.placement import TensorPlacement, placement_table, verify_placement
from diablo_ds.zero.private.optimizers import is_plain
from diablo_ds.zero.private.parameters import evaluation_record, gather_absent


class EngineState(NamedTuple):
    """What a checkpoint keeps of an engine."""

    deltas: Mapping[str, Mapping[str, Tensor]]
    """fp32 masters and AdamW moments; empty except on rank 0."""
    num_optimizer_steps: int
    """AdamW's own step count, which decides its bias correction."""
    scaler: Mapping[str, float]
    """Numbers of the dynamic loss scaler; empty unless in fp16."""


class Engine:
    """A model whose base DeepSpeed shards and whose deltas it updates.

    Every method that says "collective" must be called by all ranks together.

    Args:
        ds_engine: DeepSpeed's engine.
        deltas: the trainable parameters by name.
        placement: where each parameter has to be between steps.
    """

    def __init__(
        self,
        ds_engine: Any,
        deltas: Mapping[str, nn.Parameter],
        placement: Sequence[TensorPlacement],
    ) -> None:
        self._ds_engine = ds_engine
        self.deltas = dict(deltas)
        """The trainable parameters by name."""
        self.placement = list(placement)
        self._evaluation_record: Any = None

    @property
    def module(self) -> Any:
        """The Hugging Face model."""
        return self._ds_engine.module

    @property
    def device(self) -> torch.device:
        """The device of this rank."""
        return torch.device(self._ds_engine.device)

    @property
    def stage(self) -> int:
        """The ZeRO stage, 0 to 3."""
        return int(self._ds_engine.zero_optimization_stage())

    @property
    def loss_scale(self) -> float | None:
        """The dynamic loss scale; None unless in fp16."""
        if not self._ds_engine.fp16_enabled():
            return None
        return float(self._ds_engine.optimizer.loss_scale)

    # --- a step ----------------------------------------------------------------------------------

    def loss(self, batch: MicroBatch) -> Tensor:
        """Return the loss of a micro batch, summed over its targets, as ``[]`` in fp32. Collective.

        Args:
            batch: on the CPU.
        """
        return micro_batch_loss(self._ds_engine, batch)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a loss, inside `one_reduction`. Collective."""
        self._ds_engine.backward(loss)

    @contextlib.contextmanager
    def one_reduction(self) -> Iterator[None]:
        """Average the gradients of all backward passes inside over ranks, once. Collective.

        Where the block is left by an exception, the gradients are dropped and nothing is reduced.
        """
        with one_gradient_reduction(self._ds_engine, self.deltas.values()):
            yield

    def step(self, learning_rate: float) -> float:
        """Clip the reduced gradients, update the deltas, and drop the gradients. Collective.

        Nothing is updated where the norm is not finite.

        Returns:
            The norm over all delta gradients, before clipping.
        """
        for group in self._ds_engine.optimizer.param_groups:
            group["lr"] = learning_rate
        with traffic.updating():
            if is_plain(self._ds_engine):  # DeepSpeed reports no norm there
                grads = [delta.grad for delta in self.deltas.values() if delta.grad is not None]
                grad_norm = float(torch.nn.utils.get_total_norm(grads))
                if math.isfinite(grad_norm):  # elsewhere DeepSpeed skips the update by itself
                    self._ds_engine.step()
                return grad_norm
            self._ds_engine.step()
        return float(self._ds_engine.get_global_grad_norm())

    @property
    def was_updated(self) -> bool:
        """Whether the last step updated the deltas; fp16 skips one whose gradients overflow."""
        return bool(self._ds_engine.was_step_applied())

    # --- evaluation ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the model into evaluation mode, without changing how ZeRO-3 trains. Collective."""
        self._ds_engine.eval()
        try:
            with evaluation_record(self._ds_engine, self._evaluation_record) as record:
                self._evaluation_record = record
                yield
        finally:
            self._ds_engine.train()

    def delta_norms(self) -> dict[str, float]:
        """Return the Frobenius norm of each delta on rank 0; empty on other ranks.

        Collective under ZeRO-3. Right after an optimizer step every rank has all deltas and nothing
        is communicated; before the first they may have to be gathered.
        """
        self.gather_deltas()
        if not distributed.is_main_process():
            return {}
        return {name: float(delta.detach().float().norm()) for name, delta in self.deltas.items()}

    # --- state and placement ---------------------------------------------------------------------

    def gather_state(self) -> EngineState:
        """Return what a checkpoint keeps. Collective."""
        return EngineState(
            optimizer_state.gather_state(self._ds_engine, self.deltas),
            optimizer_state.num_optimizer_steps(self._ds_engine),
            optimizer_state.loss_scaler_state(self._ds_engine),
        )

    def restore_state(self, state: EngineState) -> None:
        """Put back what `gather_state` returned on rank 0, into an engine that took no step.

        The deltas themselves must have been loaded before the engine was started.
        """
        optimizer_state.restore_state(
            self._ds_engine, self.deltas, state.deltas, state.num_optimizer_steps
        )
        optimizer_state.restore_loss_scaler(self._ds_engine, state.scaler)

    def gather_deltas(self) -> None:
        """Gather the deltas that are partitioned now. Collective under ZeRO-3."""
        if self.stage == 3:
            gather_absent(self.deltas.values())

    def verify_placement(self, when: str) -> None:
        """Raise RuntimeError unless the base is sharded and the deltas are replicated.

        Args:
            when: moment of the check, for the message.
        """
        world_size = distributed.world_size()
        verify_placement(
            self.module, self.placement, stage=self.stage, world_size=world_size, when=when
        )

    def placement_table(self) -> str:
        """Return the placement as a table of text."""
        return placement_table(
            self.placement, stage=self.stage, world_size=distributed.world_size()
        )

    def close(self) -> None:
        """Let DeepSpeed drop its hooks and buffers."""
        self._ds_engine.destroy()


def micro_batch_loss(ds_engine: Any, batch: MicroBatch) -> Tensor:
    """Return the summed loss of a micro batch, which is on the CPU, as ``[]`` in fp32."""
    model, device = ds_engine.module, ds_engine.device
    if batch.position_ids is not None and attends_by_variable_length(model):
        batch = batch.as_one_row()
        inputs = batch.variable_length_inputs()
    else:
        inputs = batch.model_inputs()
    inputs = to_device(inputs, device)
    head = model.get_output_embeddings()
    if isinstance(head, LossHead):
        with head.computing_loss(batch.labels):
            loss: Tensor = ds_engine(**inputs).logits
            return loss
    logits = ds_engine(**inputs).logits  # [micro_batch, seq, vocab]
    return causal_lm_loss(logits, batch.labels.to(device))
