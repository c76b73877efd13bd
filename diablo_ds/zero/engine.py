"""What training does with the model that DeepSpeed runs, in one class without a DeepSpeed name."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diablo_ds.data.batches import MicroBatch
from diablo_ds.model.loss_head import loss_of
from diablo_ds.ranks import distributed
from diablo_ds.ranks.device_memory import DeviceMemory, is_out_of_memory
from diablo_ds.zero import optimizer_state, traffic
from diablo_ds.zero.block_norms import DeltaNorm, base_block_norms
from diablo_ds.zero.gradients import one_gradient_reduction
from diablo_ds.zero.placement import (
    TensorPlacement,
    placement_table,
    placement_text,
    verify_placement,
)
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


class Outcome(NamedTuple):
    """What an update did, the same on every rank."""

    grad_norm: float
    """Norm over all delta gradients, before clipping; where it is not finite, nothing changed."""
    loss_sums: list[float]
    """Each rank's."""
    messages: list[list[float]]
    """What each rank told the others."""


class _DroppedError(Exception):
    """Leaves a step behind whose gradients are not wanted."""


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
        self._evaluation_records: dict[str, Any] = {}
        self.memory = DeviceMemory(self.device)
        self._base_norms: dict[str, float] | None = None

    @property
    def module(self) -> Any:
        """The Hugging Face model."""
        return self._ds_engine.module

    @property
    def model(self) -> Any:
        """What makes forwards: DeepSpeed's engine around the Hugging Face model."""
        return self._ds_engine

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
        return loss_of(self._ds_engine, batch)

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

    def skip_unless_finite(self, loss_sum: Tensor) -> None:
        """Let the next `step` update nothing, on any rank, unless a loss is finite on this one.

        To be called inside `one_reduction`, after all backward passes. The host does not wait: the
        loss times 0, which is 0 or NaN, is added to one element of a gradient. After the reduction
        the gradient norm of every rank is NaN then, and `step` checks that norm in any case.

        Args:
            loss_sum: of this rank's micro batches, ``[]``.
        """
        grad = next(iter(self.deltas.values())).grad
        assert grad is not None
        grad.view(-1)[:1].add_((loss_sum * 0).to(grad.device))

    def step(self, learning_rate: float, loss_sum: Tensor, message: Sequence[float]) -> Outcome:
        """Clip the reduced gradients, update the deltas, drop the gradients; gather from all ranks.

        Nothing is updated where the gradient norm is not finite. What the ranks tell one another
        takes one collective and one wait for the device. Collective.

        Args:
            learning_rate: of this step.
            loss_sum: of this rank's micro batches, ``[]``.
            message: what else this rank tells the others; equally many numbers on each.
        """
        for group in self._ds_engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if is_plain(self._ds_engine):  # DeepSpeed computes no norm there, and skips no update
            grads = [delta.grad for delta in self.deltas.values() if delta.grad is not None]
            outcome = self._gather(torch.nn.utils.get_total_norm(grads), loss_sum, message)
            if math.isfinite(outcome.grad_norm):
                self._ds_engine.step()
            return outcome
        with traffic.updating():
            self._ds_engine.step()
        return self._gather(self._ds_engine.get_global_grad_norm(), loss_sum, message)

    def _gather(
        self, grad_norm: Tensor | float, loss_sum: Tensor, message: Sequence[float]
    ) -> Outcome:
        own = [grad_norm, loss_sum, torch.tensor(message, dtype=torch.float64)]
        numbers = [
            # Without `non_blocking` each number from the host would wait for the device.
            torch.as_tensor(value, dtype=torch.float64).to(self.device, non_blocking=True).view(-1)
            for value in own
        ]
        rows = distributed.gather_floats(torch.cat(numbers), self.device)
        return Outcome(rows[0][0], [row[1] for row in rows], [row[2:] for row in rows])

    def try_micro_step(self, batch: MicroBatch) -> bool:
        """Take a micro step and drop its gradients; return whether the memory lasted. Collective.

        Args:
            batch: on the CPU.
        """
        try:
            with self.one_reduction():
                self.backward(self.loss(batch))
                raise _DroppedError
        except _DroppedError:
            return True
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        gc.collect()  # what was computed until then
        return False

    @property
    def bytes_to_come(self) -> int:
        """Bytes on the device that the first optimizer step will take and keep: AdamW's moments."""
        return optimizer_state.missing_moment_bytes(self._ds_engine, self.deltas)

    @property
    def was_updated(self) -> bool:
        """Whether the last step updated the deltas; fp16 skips one whose gradients overflow."""
        return bool(self._ds_engine.was_step_applied())

    # --- evaluation ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def evaluating(self, what: str = "loss") -> Iterator[None]:
        """Put the model into evaluation mode, without changing how ZeRO-3 trains. Collective.

        Args:
            what: names evaluations whose forwards go through the modules in the same order.
        """
        self._ds_engine.eval()
        try:
            known = self._evaluation_records.get(what)
            with evaluation_record(self._ds_engine, known) as record:
                self._evaluation_records[what] = record
                yield
        finally:
            self._ds_engine.train()

    def delta_norms(self) -> dict[str, DeltaNorm]:
        """Return the norm of each delta, and that of the weights it is added to, on rank 0.

        Empty on other ranks. Right after an optimizer step every rank has all deltas and nothing is
        communicated but, the first time, the norms of the base; before the first step the deltas
        may have to be gathered. Collective.
        """
        if self._base_norms is None:
            self._base_norms = base_block_norms(self.module, self.device)
        self.gather_deltas()
        if not distributed.is_main_process():
            return {}
        norms = torch.stack([delta.detach().float().norm() for delta in self.deltas.values()])
        return {
            name: DeltaNorm(norm, self._base_norms[name])
            for name, norm in zip(self.deltas, norms.tolist(), strict=True)
        }

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

    def placement_text(self) -> str:
        """Return the placement in a line."""
        return placement_text(self.placement, stage=self.stage, world_size=distributed.world_size())

    def close(self) -> None:
        """Let DeepSpeed drop its hooks and buffers."""
        self._ds_engine.destroy()
