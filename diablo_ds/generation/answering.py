"""Answers of a base model with an adapter, token by token, and of the base alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diablo_ds.adapter.attach import without_deltas
from diablo_ds.api.functions import load
from diablo_ds.data.text.end_tokens import GENERATION_CONFIG_FILE, read_end_ids
from diablo_ds.data.text.tokenization import Tokenizer, load_tokenizer
from diablo_ds.generation.options import GenerateOptions
from diablo_ds.generation.prompts import PromptForm, choose_template, encode_prompt, run_of
from diablo_ds.model.generation import stream_greedily
from diablo_ds.model.pretrained import hide_progress_bars


@dataclass(frozen=True)
class Answering:
    """A model with an adapter that answers, with all that is needed to ask it."""

    model: Any
    tokenizer: Tokenizer
    form: PromptForm
    """Of the prompts."""
    end_ids: frozenset[int]
    """Tokens that end an answer with the adapter."""
    base_end_ids: frozenset[int]
    """Tokens that end an answer of the base alone."""
    max_new_tokens: int

    def answer(
        self,
        messages: Sequence[Mapping[str, str]],
        write: Callable[[str], None],
        *,
        with_adapter: bool = True,
    ) -> str:
        """Answer a conversation, greedily.

        Args:
            messages: see `encode_prompt`.
            write: called with each new piece of text.
            with_adapter: False for the base alone.

        Returns:
            The text.
        """
        ids = encode_prompt(messages, self.form.template, self.tokenizer, self.form.control_tokens)
        ends = self.end_ids if with_adapter else self.base_end_ids
        said: list[int] = []
        shown = ""

        def show(token: int) -> None:
            nonlocal shown
            if token in ends:
                return
            said.append(token)
            text = self._text(ids, said)
            # Bytes of a character that is not complete yet are shown with those to come.
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):
                write(text[len(shown) :])
                shown = text

        switch = contextlib.nullcontext() if with_adapter else without_deltas(self.model)
        with switch:
            stream_greedily(self.model, ids, self.max_new_tokens, sorted(ends), show)
        text = self._text(ids, said)
        write(text[len(shown) :])
        return text

    def _text(self, prompt: list[int], said: list[int]) -> str:
        """Return the text of new tokens; decoded after the last of the prompt, for their spaces."""
        before = prompt[-1:]
        start = len(self.tokenizer.encoder.decode(before))
        return self.tokenizer.encoder.decode([*before, *said])[start:]


def load_answering(options: GenerateOptions, adapter: Path, base: Path) -> Answering:
    """Load base, adapter and tokenizer, once, on the GPU where there is one.

    Args:
        options: the command's.
        adapter: the adapter's folder.
        base: the base model's folder.

    Raises:
        UserError: if one is missing or damaged, or they do not belong together.
    """
    hide_progress_bars()
    run_config = run_of(adapter)
    tokenizer = load_tokenizer(base)
    form = choose_template(options.template, run_config, tokenizer)
    model = load(base, adapter, force=options.force).eval()
    if torch.cuda.is_available():
        model.to("cuda")
    base_ends = read_end_ids(base / GENERATION_CONFIG_FILE) or {tokenizer.end_id}
    ends = read_end_ids(adapter / GENERATION_CONFIG_FILE) or {*base_ends, tokenizer.end_id}
    return Answering(
        model,
        tokenizer,
        form,
        frozenset(ends),
        frozenset(base_ends),
        options.max_new_tokens,
    )
