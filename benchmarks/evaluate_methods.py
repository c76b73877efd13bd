"""Three ways to answer the same questions, each served by a process of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.harness import harness_task, load_harness_model, run_harness, set_batch_size
from benchmarks.questions import Asked, read_asked
from benchmarks.ranks import peak_memory, reset_peak_memory
from diablo_ds.data.text.tokenization import load_tokenizer
from diablo_ds.evaluation.items import CHOICE, GENERATION, Item, ask, choice_items, generation_items
from diablo_ds.evaluation.models import open_models
from diablo_ds.evaluation.prompts import encode_choices, encode_questions

OURS, SINGLE, HARNESS = "diablo_ds", "one at a time", "lm-evaluation-harness"


@dataclass(frozen=True)
class Part:
    """Questions of one task that are answered in one way."""

    task: str
    kind: str
    """`CHOICE` or `GENERATION`."""
    count: int
    max_new_tokens: int = 0
    """0 for the task's own."""
    path: str = ""
    template: str = ""
    """Empty for the task's own."""

    def read(self) -> Asked:
        """Read the questions."""
        path = Path(self.path) if self.path else None
        return read_asked(self.task, path, self.count, self.max_new_tokens, self.template)


class Method(Protocol):
    """A model that is ready to answer."""

    def answer(self, asked: Asked, kind: str, batch_size: int) -> list[Any]:
        """Return the index of the chosen answer, or the generated text, of each question.

        Args:
            asked: the questions.
            kind: `CHOICE` or `GENERATION`.
            batch_size: rows of a batch, where the method lets one choose them.
        """


def first_largest(values: list[float]) -> int:
    """Return the index of the largest value, the first of equal ones."""
    return max(range(len(values)), key=lambda index: (values[index], -index))


class Ours:
    """`diablo_ds.evaluation`, from questions to answers."""

    def __init__(self, folder: Path) -> None:
        self.models = open_models(base=str(folder), precision="fp32")
        self.model = contextlib.ExitStack().enter_context(self.models.use("base"))

    def results(self, asked: Asked, kind: str) -> list[Any]:
        """Return a `ChoiceResult` or a `Generation` for each question."""
        tokenizer, questions = self.model.tokenizer, asked.questions
        prompts = encode_questions(questions, asked.task.template, tokenizer)
        if kind == CHOICE:
            choices = encode_choices(questions, asked.task.template, tokenizer)
            items = choice_items("base", asked.task, questions, prompts, choices, tokenizer)
        else:
            items = generation_items(
                "base",
                asked.task,
                questions,
                prompts,
                asked.task.template,
                tokenizer,
                end_ids=self.model.end_ids,
            )
        found: dict[str, Any] = {}

        def keep(item: Item, result: Any) -> None:
            found[item.key.id] = result

        ask(self.model.engine, items, keep)
        return [found[question.id] for question in questions]

    def answer(self, asked: Asked, kind: str, batch_size: int) -> list[Any]:
        """See `Method`; the engine chooses its batches."""
        results = self.results(asked, kind)
        if kind == CHOICE:
            return [first_largest(result.log_likelihoods) for result in results]
        return [result.text for result in results]


class Single:
    """transformers' own loop: a forward for each choice, and `generate` for each question."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = load_tokenizer(folder)

    @torch.inference_mode()
    def answer(self, asked: Asked, kind: str, batch_size: int) -> list[Any]:
        """See `Method`; a batch is one row."""
        template = asked.task.template
        prompts = encode_questions(asked.questions, template, self.tokenizer)
        if kind == CHOICE:
            choices = encode_choices(asked.questions, template, self.tokenizer)
            return [
                first_largest([self._log_likelihood(prompt, choice) for choice in own])
                for prompt, own in zip(prompts, choices, strict=True)
            ]
        return [self._continue(prompt, asked.task.max_new_tokens) for prompt in prompts]

    def _log_likelihood(self, prompt: tuple[int, ...], choice: tuple[int, ...]) -> float:
        ids = torch.tensor([[*prompt, *choice]])
        logits = self.model(input_ids=ids, use_cache=False).logits[0]  # [seq, vocab]
        known = logits[len(prompt) - 1 : -1].log_softmax(dim=-1)  # [choice, vocab]
        return float(known.gather(1, torch.tensor(choice)[:, None]).sum())

    def _continue(self, prompt: tuple[int, ...], max_new_tokens: int) -> str:
        ids = torch.tensor([prompt])
        with_answer = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        answer = with_answer[0, len(prompt) :].tolist()
        ends = self.tokenizer.control.ids | {self.tokenizer.end_id}
        return self.tokenizer.encoder.decode([token for token in answer if token not in ends])


class Harness:
    """lm-evaluation-harness."""

    def __init__(self, folder: Path) -> None:
        self.model = load_harness_model(folder, 1)
        self.tasks: dict[tuple[str, str, int], Any] = {}

    def answer(self, asked: Asked, kind: str, batch_size: int) -> list[Any]:
        """See `Method`."""
        set_batch_size(self.model, batch_size)
        key = asked.task.name, kind, len(asked.questions)
        task = self.tasks.get(key) or harness_task(asked, kind)
        self.tasks[key] = task
        samples = run_harness(self.model, task, len(asked.questions))
        if kind == GENERATION:
            return [str(sample["resps"][0][0]) for sample in samples]
        return [first_largest([r[0] for r in s["filtered_resps"]]) for s in samples]


METHODS: dict[str, Callable[[Path], Method]] = {OURS: Ours, SINGLE: Single, HARNESS: Harness}


def serve(
    connection: Connection, method: str, folder: str, threads: int, parts: list[dict[str, Any]]
) -> None:
    """Load a model, and measure what is asked for until None is.

    Each request is ``(number of the part, places of its questions, batch size)``, and its reply
    seconds, CPU seconds, peak memory in bytes, and the answers.

    Args:
        connection: to the benchmark.
        method: one of `METHODS`.
        folder: of the model.
        threads: that PyTorch uses.
        parts: fields of each `Part`.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    known = [Part(**part) for part in parts]
    asked = [part.read() for part in known]
    ready = METHODS[method](Path(folder))
    connection.send("ready")
    while (request := connection.recv()) is not None:
        number, places, batch_size = request
        chosen = asked[number].only(places)
        reset_peak_memory()
        start, cpu_start = time.perf_counter(), time.process_time()
        answers = ready.answer(chosen, known[number].kind, batch_size)
        reply = {
            "seconds": time.perf_counter() - start,
            "cpu_s": time.process_time() - cpu_start,
            "memory_bytes": peak_memory(),
            "answers": answers,
        }
        connection.send(reply)


def part_fields(parts: list[Part]) -> list[dict[str, Any]]:
    """Return parts in the form that `serve` takes."""
    return [asdict(part) for part in parts]
