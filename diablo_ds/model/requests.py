"""What a model is asked while it is evaluated, in tokens, and what it answers; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Finish = Literal["end", "stop", "length"]
"""Why an answer ends: by an end token, by a stop string, or by its most tokens."""


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt to continue."""

    prompt: tuple[int, ...]
    """Token ids, at least one."""
    max_new_tokens: int
    """Most tokens of the answer, at least 1."""
    end_ids: frozenset[int] = frozenset()
    """Tokens that end an answer: the end of a text, the end of a turn."""
    stops: tuple[str, ...] = ()
    """Texts that end an answer; a token may contain, begin or complete one."""
    temperature: float = 0.0
    """What logits are divided by before a token is drawn; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Probability of the smallest set of likeliest tokens that are drawn from, in (0, 1]."""
    seed: int = 0
    """Of the draws, which depend on nothing else than it and the model."""


@dataclass(frozen=True)
class Generation:
    """An answer."""

    tokens: tuple[int, ...]
    """The new tokens, without the end token; with those that spell a stop string."""
    text: str
    """Their text, up to a stop string."""
    finish: Finish


@dataclass(frozen=True)
class ChoiceRequest:
    """A prompt with continuations to compare."""

    prompt: tuple[int, ...]
    """Token ids, at least one."""
    continuations: tuple[tuple[int, ...], ...]
    """Token ids of each, at least one."""


@dataclass(frozen=True)
class ChoiceResult:
    """How likely continuations are."""

    log_likelihoods: tuple[float, ...]
    """Of each continuation after the prompt: the sum over its tokens, in nats."""
    is_greedy: tuple[bool, ...]
    """Whether each of its tokens is the likeliest."""


@dataclass(frozen=True)
class LossRequest:
    """A training example."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    """Of the same tokens; `diablo_ds.data.labels.IGNORE_LABEL` where there is no loss."""


@dataclass(frozen=True)
class LossResult:
    """The loss of an example."""

    nats: float
    """Summed over its target tokens."""
    num_targets: int
    """Its first token is never a target: nothing precedes it."""
