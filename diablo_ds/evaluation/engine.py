"""Requests in tokens to answers, on one rank or dealt to several.

    engine = Engine(model, tokenizer.encoder.decode)
    engine.generate(requests, lambda index, answer: ...)

Every rank has the same requests and gets all answers. Each works on its own part, of which the
lengths are like those of the others', and every few seconds they exchange what they have.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from diablo_ds.evaluation.limits import measure_limits
from diablo_ds.model.attention import takes_lengths
from diablo_ds.model.batch_generation import generate
from diablo_ds.model.batch_rules import BatchLimits, BatchRules
from diablo_ds.model.batching_proof import prove_batching
from diablo_ds.model.choice_scoring import score_choices
from diablo_ds.model.example_losses import example_losses
from diablo_ds.model.forwards import Forwards
from diablo_ds.model.requests import (
    ChoiceRequest,
    ChoiceResult,
    Generation,
    GenerationRequest,
    LossRequest,
    LossResult,
)
from diablo_ds.model.shared_answers import SharedAnswers
from diablo_ds.ranks import distributed
from diablo_ds.ranks.log import logger

Request = TypeVar("Request")
Result = TypeVar("Result")


class Engine:
    """A model that answers requests.

    Every method is collective: every rank must call it with the same requests. Its ``on_result`` is
    called on every rank with the index of each request and its answer, in any order: of a rank's
    own answers as soon as they are there, of the others' every few seconds.

    Args:
        model: a causal LM of transformers in evaluation mode, or DeepSpeed's engine around it.
        decode: returns the text of tokens.
        in_step: whether all ranks have to make the same number of forwards, as under ZeRO-3.
            Otherwise each rank has a full copy of the model.
        limits: how large batches may be; by default what the memory allows.
        rules: how rows of a batch are kept apart; by default it is tried on a tiny model.
        is_stopping: see `diablo_ds.model.forwards.Forwards`.
    """

    def __init__(
        self,
        model: Any,
        decode: Callable[[Sequence[int]], str],
        *,
        in_step: bool = False,
        limits: BatchLimits | None = None,
        rules: BatchRules | None = None,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.forwards = Forwards(model, in_step=in_step, is_stopping=is_stopping)
        self.decode = decode
        self._limits, self._rules = limits, rules
        self._proofs: dict[int, BatchRules] = {}

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        on_result: Callable[[int, Generation], object],
    ) -> None:
        """Continue prompts."""
        lengths = [len(request.prompt) + request.max_new_tokens for request in requests]
        rules, limits = self._rules_for(lengths), self.limits

        def work(part: Sequence[GenerationRequest], deliver: Callable[[int, Any], object]) -> None:
            generate(
                self.forwards,
                part,
                self.decode,
                deliver,
                limits=limits,
                rules=rules,
            )

        self._deal(requests, lengths, work, on_result)

    def choose(
        self,
        requests: Sequence[ChoiceRequest],
        on_result: Callable[[int, ChoiceResult], object],
    ) -> None:
        """Score continuations of prompts."""
        lengths = [len(r.prompt) + max(map(len, r.continuations)) for r in requests]
        rules, limits = self._rules_for(lengths), self.limits

        def work(part: Sequence[ChoiceRequest], deliver: Callable[[int, Any], object]) -> None:
            score_choices(self.forwards, part, deliver, limits=limits, rules=rules)

        self._deal(requests, lengths, work, on_result)

    def losses(
        self,
        requests: Sequence[LossRequest],
        on_result: Callable[[int, LossResult], object],
    ) -> None:
        """Compute the losses of examples."""
        lengths = [len(request.input_ids) for request in requests]
        rules, limits = self._rules_for(lengths), self.limits

        def work(part: Sequence[LossRequest], deliver: Callable[[int, Any], object]) -> None:
            example_losses(self.forwards, part, deliver, limits=limits, rules=rules)

        self._deal(requests, lengths, work, on_result)

    # --- how batches are made --------------------------------------------------------------------

    @property
    def max_length(self) -> int | None:
        """Tokens of the longest row that the model was made for; None where its config has none."""
        text = self.forwards.module.config.get_text_config()
        length = getattr(text, "max_position_embeddings", None)
        return length if isinstance(length, int) and length > 0 else None

    @property
    def limits(self) -> BatchLimits:
        """How large batches may be. Collective where the ranks are in step, when first asked."""
        if self._limits is None:
            with self.forwards.together():
                self._limits = measure_limits(self.forwards)
        return self._limits

    def renew_limits(self) -> None:
        """Measure again how large batches may be, in powers of two. Collective."""
        with self._prepared(), self.forwards.together():
            self._limits = measure_limits(self.forwards).in_powers_of_two()

    def rules(self, max_length: int) -> BatchRules:
        """Return how rows of up to ``max_length`` tokens are kept apart. Collective."""
        if self._rules is not None:
            return self._rules
        # A power of two, so that few have to be tried.
        longest = 1 << (max_length - 1).bit_length()
        if longest not in self._proofs:
            model_config = self.forwards.module.config
            attention = model_config.get_text_config()._attn_implementation or "eager"
            self._proofs[longest] = distributed.on_main_process(
                lambda: prove_batching(model_config, attention, longest)
            )
            if reason := self._proofs[longest].describe():
                logger.info(f"Answers of {model_config.model_type} take longer: {reason}")
        return self._proofs[longest]

    def _rules_for(self, lengths: Sequence[int]) -> BatchRules:
        """Ask for the rules on every rank, also on those that get no part of the requests."""
        return self.rules(max(lengths)) if lengths else BatchRules()

    # --- ranks -----------------------------------------------------------------------------------

    def _deal(
        self,
        requests: Sequence[Request],
        lengths: Sequence[int],
        work: Callable[[Sequence[Request], Callable[[int, Any], object]], None],
        on_result: Callable[[int, Any], object],
    ) -> None:
        """Give each rank its part of the requests, and every rank all results."""
        if not requests:
            return
        if distributed.is_alone():
            with self._prepared():
                work(requests, on_result)
            return
        order = sorted(range(len(requests)), key=lambda index: (-lengths[index], index))
        mine = order[distributed.rank() :: distributed.world_size()]
        shared = SharedAnswers(on_result)
        with self._prepared(), self.forwards.together(shared):
            if mine:
                work(
                    [requests[index] for index in mine],
                    lambda place, result: shared.add(mine[place], result),
                )

    @contextlib.contextmanager
    def _prepared(self) -> Iterator[None]:
        """Let the model take caches and padding, whatever its training needs."""
        module = self.forwards.module
        attention = module.config.get_text_config()._attn_implementation
        # Layers that were compiled for training would be compiled anew for each length.
        with contextlib.ExitStack() as undo:
            if takes_lengths(str(attention)):
                module.set_attn_implementation("sdpa")
                undo.callback(module.set_attn_implementation, attention)
            undo.enter_context(torch.compiler.set_stance("force_eager"))
            yield
