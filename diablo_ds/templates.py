"""Prompt templates, the same for training and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Segment(NamedTuple):
    """A piece of an example's text, tokenised apart from its neighbours."""

    text: str
    is_target: bool
    """Whether its tokens carry loss."""


def alpaca(instruction: str, context: str = "") -> str:
    """Return the prompt of Stanford Alpaca, with an input section where there is context."""
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
    """Return the text as it is, with context below the instruction."""
    return f"{instruction}\n{context}" if context else instruction


PROMPTS: dict[str, Callable[[str, str], str]] = {"alpaca": alpaca, "gsm8k": gsm8k, "plain": plain}
AUTO, PLAIN, CHAT = "auto", "plain", "chat"
TEMPLATES = (*PROMPTS, CHAT)
READ = "read"
CONTROL_TOKENS = (AUTO, READ, "text")
"""What text such as "<|im_end|>" is in rows of the template plain."""


def check_control_tokens(control_tokens: str, template: str) -> None:
    """Raise ValueError where control_tokens has no effect: text of other templates stays text."""
    if control_tokens != AUTO and template not in (AUTO, PLAIN):
        raise ValueError(
            f"control_tokens needs the template {PLAIN}, as text of others always stays text; got "
            f"control_tokens={control_tokens!r}, template={template!r}"
        )
