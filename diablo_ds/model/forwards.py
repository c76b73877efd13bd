"""Forwards of a model that is evaluated, by one rank alone or by all ranks in step.

Under ZeRO-3 every forward gathers each layer's weights from all ranks, so that all have to make the
same number of forwards. Ahead of each the ranks tell one another that they go on; a rank that has
nothing left makes forwards of an empty batch until all are done. Widths and kinds of the batches
need not agree.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diablo_ds.model.shared_answers import SharedAnswers
from diablo_ds.ranks import distributed
from diablo_ds.ranks.heartbeat import heart
from diablo_ds.ranks.stopping import StopAgreed

_DONE, _BUSY, _FAILED, _STOPPING = 0, 1, 2, 3


class Outputs(NamedTuple):
    """What a forward returns."""

    logits: Tensor
    """``[batch, keep, vocab]``."""
    cache: Any
    """transformers' cache, with the forward's tokens added; None where none was asked for."""


class Forwards:
    """The forwards of a causal LM, which is in evaluation mode.

    Args:
        model: a model of transformers, or DeepSpeed's engine around it.
        in_step: whether all ranks have to make the same number of forwards.
        is_stopping: tells ahead of each forward whether this rank was asked to stop. Where there
            are several ranks, they have to be in step.

    Every forward may raise StopAgreed, on all ranks at the same one, where a rank is to stop.
    """

    def __init__(
        self,
        model: Any,
        *,
        in_step: bool = False,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model = model
        self.module = getattr(model, "module", model)
        self.device = torch.device(model.device)
        self.in_step, self._is_stopping = in_step, is_stopping
        self._parameters = frozenset(inspect.signature(self.module.forward).parameters)
        self._is_inside = False
        self._shared: SharedAnswers | None = None

    @property
    def keeps_logits(self) -> bool:
        """Whether the model computes no more logits than it is asked for."""
        return "logits_to_keep" in self._parameters

    @torch.no_grad()
    def __call__(
        self,
        input_ids: Tensor,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Any = None,
        use_cache: bool = True,
        keep: int = 0,
    ) -> Outputs:
        """Return the logits of a batch. Collective where the ranks are in step.

        Args:
            input_ids: ``[batch, seq]``, int64, on the model's device.
            mask: ``[batch, cached + seq]``, 1 for tokens and 0 for padding; None without padding.
            positions: ``[batch, seq]``, int64.
            cache: of the tokens before; None for none. It is changed in place.
            use_cache: whether the forward's own tokens are to be found in a cache afterwards.
            keep: number of last tokens whose logits are returned; 0 for all.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": use_cache}
        if mask is not None:
            inputs["attention_mask"] = mask
        if positions is not None and "position_ids" in self._parameters:
            inputs["position_ids"] = positions
        if cache is not None:
            inputs["cache" if "cache" in self._parameters else "past_key_values"] = cache
        if keep and self.keeps_logits:
            inputs["logits_to_keep"] = keep
        with self.one_forward():
            outputs = self.model(**inputs)
        logits = outputs.logits
        if keep and logits.shape[1] > keep:
            logits = logits[:, -keep:]
        # transformers 5.24 calls it cache, earlier versions past_key_values.
        name = "cache" if "cache" in outputs else "past_key_values"
        return Outputs(logits, outputs.get(name) if use_cache else None)

    @contextlib.contextmanager
    def one_forward(self) -> Iterator[None]:
        """Make a forward of the model inside. Collective where the ranks are in step."""
        heart.beat("evaluation")
        self._tell(_BUSY)
        self._is_inside = True
        yield
        self._is_inside = False  # not after an error: the other ranks wait inside theirs

    @contextlib.contextmanager
    def together(self, shared: SharedAnswers | None = None) -> Iterator[None]:
        """Make this rank's forwards inside, and then, in step, empty ones until all ranks are done.

        Collective where the ranks are in step, or share answers.

        Args:
            shared: answers that are exchanged between forwards, and all of them at the end.

        Raises:
            RuntimeError: if another rank fails.
            StopAgreed: if a rank is to stop.
        """
        self._shared = shared
        try:
            with self._in_step() if self.in_step else contextlib.nullcontext():
                yield
            while shared is not None and not shared.exchange(is_done=True):
                pass
        finally:
            self._shared = None

    @contextlib.contextmanager
    def _in_step(self) -> Iterator[None]:
        try:
            yield
        except (_OtherRankFailedError, StopAgreed, KeyboardInterrupt):
            raise  # which the other ranks know
        except BaseException:
            if not self._is_inside:
                distributed.gather_floats([_FAILED, 0.0], self.device)
            raise
        token = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        while self._tell(_DONE):
            heart.beat("evaluation")
            with torch.no_grad():
                self.model(input_ids=token, use_cache=False)

    def _tell(self, state: int) -> bool:
        """Tell the other ranks what this one does; return whether any goes on."""
        if self._is_stopping():
            if not self.in_step:
                raise StopAgreed
            state = _STOPPING
        shared = self._shared
        is_due = shared is not None and shared.is_due
        if not self.in_step:
            if shared is not None and is_due:
                shared.exchange(is_done=False)
            return state == _BUSY
        states, is_due = self._gather_states(state, is_due=is_due)
        if shared is not None and is_due:
            shared.exchange(is_done=False)
            # An answer may have been more than a rank can take, of which it tells then.
            states, _ = self._gather_states(state, is_due=False)
        return _BUSY in states

    def _gather_states(self, state: int, *, is_due: bool) -> tuple[list[int], bool]:
        """Return what all ranks do, and whether an exchange is due on any of them."""
        rows = distributed.gather_floats([state, float(is_due)], self.device)
        states = [int(row[0]) for row in rows]
        if _FAILED in states:
            raise _OtherRankFailedError(
                f"an evaluation in step needs all ranks; got a failure on rank "
                f"{states.index(_FAILED)}"
            )
        if _STOPPING in states:
            raise StopAgreed
        return states, any(row[1] for row in rows)


class _OtherRankFailedError(RuntimeError):
    """Another rank has told of its failure."""
