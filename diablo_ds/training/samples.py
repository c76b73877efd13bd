"""Answers to the same held-out prompts at each evaluation, for a person to read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from diablo_ds.data.examples import Examples
from diablo_ds.data.labels import IGNORE_LABEL, Example
from diablo_ds.data.text.tokenization import load_tokenizer
from diablo_ds.files.markdown_text import cell
from diablo_ds.model.requests import Generation, GenerationRequest
from diablo_ds.ranks import distributed
from diablo_ds.training.answering import TrainedModel
from diablo_ds.training.startup import Run

MAX_NEW_TOKENS = 128
_MOST_PROMPT_TOKENS = 1024
"""Of a longer prompt the last ones are put through the model."""
_TEXT_PROMPT_TOKENS = 32
"""Of an example without a prompt, of which every token is learnt."""
_MOST_CHARACTERS = 1200
"""Shown of a prompt, its end, and of an answer, its beginning."""


class Sample(NamedTuple):
    """A held-out example as a question."""

    prompt: tuple[int, ...]
    wanted: tuple[int, ...]
    """The tokens that follow in the example."""


class Samples:
    """Asks the model of a run for its answers.

    Args:
        run: the run, with held-out data and sample_prompts above 0.
        is_stopping: tells whether this rank was asked to stop.
    """

    def __init__(self, run: Run, is_stopping: Callable[[], bool]) -> None:
        assert run.heldout_batches is not None
        tokenizer = distributed.on_every_rank(lambda: load_tokenizer(run.base_folder))
        config = run.engine.module.config.get_text_config()
        positions = getattr(config, "max_position_embeddings", None) or math.inf
        room = int(min(positions - MAX_NEW_TOKENS, _MOST_PROMPT_TOKENS))
        self._samples = choose_samples(run.heldout_batches.examples, run.run_config.sample_prompts)
        ends = frozenset(run.generation_config["eos_token_id"])
        self._requests = [
            GenerationRequest(sample.prompt[-max(1, room) :], MAX_NEW_TOKENS, ends)
            for sample in self._samples
        ]
        self._model = TrainedModel(run.engine, tokenizer, is_stopping)
        self._decode = tokenizer.encoder.decode

    def table(self) -> str:
        """Return prompts, what follows in the data, and the answers, as a Markdown table.

        Collective: every rank must call this.

        Raises:
            StopAgreed: on all ranks, soon after one of them was asked.
        """
        answers: dict[int, str] = {}

        def keep(index: int, answer: Generation) -> None:
            answers[index] = answer.text

        with self._model.answering("samples") as engine:
            engine.generate(self._requests, keep)
        lines = ["| prompt | in the data | answer |", "|---|---|---|"]
        for index, sample in enumerate(self._samples):
            prompt = self._decode(sample.prompt)[-_MOST_CHARACTERS:]
            texts = (prompt, self._decode(sample.wanted), answers[index])
            lines.append(f"| {' | '.join(_cell(text) for text in texts)} |")
        return "\n".join(lines)


def choose_samples(examples: Examples, count: int) -> list[Sample]:
    """Return up to ``count`` examples as questions, spread over all of them; always the same."""
    count = min(count, len(examples))
    return [_sample(examples[index * len(examples) // count]) for index in range(count)]


def _sample(example: Example) -> Sample:
    ids = tuple(map(int, example.input_ids))
    is_target = [label != IGNORE_LABEL for label in example.labels]
    first = next((i for i, found in enumerate(is_target) if found and i), len(ids))
    if first == 1 and len(ids) > 2:
        first = min(_TEXT_PROMPT_TOKENS, len(ids) // 2)
    last = next((i for i in range(first, len(ids)) if not is_target[i]), len(ids))
    return Sample(ids[:first], ids[first:last])


def _cell(text: str) -> str:
    """Return text that Markdown shows as it is, on one line of a table."""
    shown = cell(text[:_MOST_CHARACTERS].strip())
    for mark in "\\*_~":  # what marks words
        shown = shown.replace(mark, f"&#{ord(mark)};")
    return shown
