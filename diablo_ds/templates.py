"""Prompt templates, the same for training and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Message = Mapping[str, str]
"""One turn of a conversation: "role" and "content"."""


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
CHAT = "chat"
TEMPLATES = (*PROMPTS, CHAT)


class ChatTemplate(NamedTuple):
    """A tokenizer's own template for conversations."""

    render: Callable[[Sequence[Message], bool], str]
    """Renders messages, with or without the opening of the next answer."""
    special_tokens: tuple[str, ...]
    """Text that the tokenizer reads as control tokens, such as the end of a turn."""

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """Split a conversation into segments: loss on each answer and its end-of-turn token.

        Every answer is cut off where a model would start to generate it: at the end of what the
        template renders for the messages before it, with the opening of an answer.

        Raises:
            ValueError: if the template renders a message differently once another follows, a
                message holds control tokens, or there is no answer.
        """
        for message in messages:
            if found := [s for s in self.special_tokens if s in message["content"]]:
                raise ValueError(f"messages must not hold control tokens; got {found[0]!r}")
        segments, done = [], ""
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self.render(messages[:turn], True)
            whole = self.render(messages[: turn + 1], False)
            if not prompt.startswith(done) or not whole.startswith(prompt):
                raise ValueError(
                    "chat template must render a conversation as a continuation of its beginning; "
                    f"got another text from turn {turn + 1} on"
                )
            answer = self._answer(whole[len(prompt) :])
            segments += [Segment(prompt[len(done) :], False), Segment(answer, True)]
            done = prompt + answer
        if not segments:
            raise ValueError("a conversation must have an answer by the assistant; got none")
        return segments

    def ends_turns(self, segments: Sequence[Segment]) -> bool:
        """Return whether the last answer ends with a control token of the template's."""
        return segments[-1].text.endswith(self.special_tokens)

    def _answer(self, text: str) -> str:
        """Cut what the template adds after an answer's end-of-turn token."""
        ends = [text.find(s) + len(s) for s in self.special_tokens if s in text]
        return text[: min(ends)] if ends else text
