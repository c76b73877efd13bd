"""Prompt templates, the same for training and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Segment(NamedTuple):
    """A piece of an example's text, tokenised separately from its neighbours."""

    text: str
    is_target: bool
    """Whether its tokens carry loss."""


def alpaca(instruction: str, context: str = "") -> str:
    """Return the prompt of Stanford Alpaca, with an input section if there is context."""
    paired = ", paired with an input that provides further context" if context else ""
    section = f"### Input:\n{context}\n\n" if context else ""
    return (
        f"Below is an instruction that describes a task{paired}. "
        "Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{instruction}\n\n{section}### Response:\n"
    )


def gsm8k(instruction: str, context: str = "") -> str:
    """Return the prompt that DiaBlo (arXiv 2506.03230) uses for GSM8K."""
    return (
        f"{plain(instruction, context)}\n"
        "Answer the above question. First think step by step and then answer the final number.\n"
    )


def plain(instruction: str, context: str = "") -> str:
    """Return the unchanged text, with context below the instruction."""
    return f"{instruction}\n{context}" if context else instruction


PROMPTS: dict[str, Callable[[str, str], str]] = {"alpaca": alpaca, "gsm8k": gsm8k, "plain": plain}
