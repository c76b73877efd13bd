"""The MetaMathQA protocol of PEFT's method comparison: data, prompt, training, answers, figures.

Read from https://github.com/huggingface/peft, folder method_comparison/MetaMathQA, commit 5d602fd
(2026-08-21): `data.py`, `run.py`, `utils.py`, `default_training_params.json` and `results/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from diablo_ds.data.corpora.columns import with_field_names
from diablo_ds.data.corpora.fields import RowError, text
from diablo_ds.data.corpora.raw_rows import Unreadable, parse
from diablo_ds.data.corpora.reading import read_rows
from diablo_ds.data.corpora.sources import find_sources
from diablo_ds.data.prepare.decontamination import normalize
from diablo_ds.errors import UserError

SOURCE = "https://github.com/huggingface/peft, method_comparison/MetaMathQA, commit 5d602fd"
MODEL = "meta-llama/Llama-3.2-3B"
MODEL_SHAPE = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "vocab_size": 128256,
}
"""By which the model of the published figures is known."""

STEPS, GLOBAL_BATCH, MAX_LENGTH = 5000, 4, 768
WARMUP_SHARE, WEIGHT_DECAY, MAX_GRAD_NORM = 0.1, 0.1, 1.0
MAX_NEW_TOKENS = 300
MAX_CHARACTERS = 1300
"""Of query and response with a space between; longer rows are left out."""
NUM_QUESTIONS = 1319
"""Of GSM8K's test split."""

_MARKERS = (
    "The answer is: ",
    "The answer is ",
    "The final answer is: ",
    "The final answer is ",
    "#### ",
)
"""What may come before an answer; the first of these that a text holds is the one that counts."""


# --- data ----------------------------------------------------------------------------------------


def prompt_of(question: str) -> str:
    """Return the prompt; the answer follows the colon without a space."""
    return f"Question: {question} Think step by step.\nAnswer:"


class Pair(NamedTuple):
    """A row of MetaMathQA."""

    query: str
    response: str
    original: str
    """The question of GSM8K or MATH that the query was made from; empty where it is not known."""

    @property
    def text(self) -> str:
        """The training text, all of which carries loss."""
        return prompt_of(self.query) + self.response


@dataclass
class Selection:
    """The rows that are trained on, and why others before them are not."""

    pairs: list[Pair]
    num_read: int = 0
    num_long: int = 0
    """Rows of more than `MAX_CHARACTERS`."""
    num_tests: int = 0
    """Rows whose question, or the one it was made from, is a test question."""


def read_pairs(source: str) -> Iterator[Pair]:
    """Yield the rows of MetaMathQA in the order of its files.

    Args:
        source: a file, folder or hub name; any format of training data, with fields query and
            response.

    Raises:
        UserError: naming file and line, if a row has other fields.
    """
    files, _ = find_sources([source])
    for _, file in files:
        for raw in read_rows(file):
            try:
                fields = parse(raw.value)
                if isinstance(fields, Unreadable):
                    raise RowError(fields.reason)
                row = with_field_names(fields, {})
                original = row.get("original_question")
                yield Pair(
                    text(row, "query"),
                    text(row, "response"),
                    original if isinstance(original, str) else "",
                )
            except RowError as error:
                raise UserError(
                    "each row must be one of MetaMathQA, with query and response; got "
                    f"{file}, line {raw.line}: {error}"
                ) from None


def select(pairs: Iterable[Pair], count: int, test_questions: Iterable[str]) -> Selection:
    """Take the first rows that are short enough, but for test questions.

    Raises:
        UserError: if there are fewer.
    """
    tests = {tuple(normalize(question)) for question in test_questions}
    selection = Selection([])
    for pair in pairs:
        if len(selection.pairs) == count:
            break
        selection.num_read += 1
        if len(pair.query) + 1 + len(pair.response) > MAX_CHARACTERS:
            selection.num_long += 1
        elif any(tuple(normalize(q)) in tests for q in (pair.query, pair.original) if q):
            selection.num_tests += 1
        else:
            selection.pairs.append(pair)
    if len(selection.pairs) < count:
        raise UserError(
            f"data must have as many rows as examples; got examples={count} and "
            f"{len(selection.pairs)} rows to train on: {selection.num_read} read, "
            f"{selection.num_long} of more than {MAX_CHARACTERS} characters, "
            f"{selection.num_tests} test questions; give fewer --examples or --steps"
        )
    return selection


# --- answers -------------------------------------------------------------------------------------


def stated_answer(text: str) -> str | None:
    """Return what a text states as its answer, in one line; None if it states none."""
    text = text.strip().rstrip(".!?")
    for marker in _MARKERS:
        _, found, rest = text.rpartition(marker)
        if found:
            return rest.strip().partition("\n")[0].strip(" .!?$%")
    return None


def value_of(answer: str) -> float | str:
    """Return the number that an answer is, as a decimal or a fraction; otherwise its text.

    Thousands separators make a text of it, as in the protocol.
    """
    parts = answer.strip().split("/")
    try:
        top, *bottoms = [Decimal(part.strip()) for part in parts]
        if len(bottoms) > 1:
            return answer
        return float(top / bottoms[0]) if bottoms else float(top)
    except (ArithmeticError, ValueError):  # no number, a division by 0, or out of range
        return answer


def is_right(prompt: str, output: str, reference: str) -> bool:
    """Return whether the protocol counts an answer as right.

    It looks for the stated answer in the prompt and the output together, and compares numbers as
    numbers and anything else letter by letter.

    Args:
        prompt: of the question.
        output: what the model wrote.
        reference: what follows "#### " in the solution.
    """
    found = stated_answer(prompt + output)
    expected = stated_answer(f"#### {reference}")
    return found is not None and expected is not None and value_of(found) == value_of(expected)


# --- published figures ---------------------------------------------------------------------------


class Published(NamedTuple):
    """A result of PEFT's maintainers on one NVIDIA L40S; not measured here."""

    name: str
    num_right: int
    """Of `NUM_QUESTIONS`."""
    trainable: int
    adapter_bytes: int
    train_s: int
    """Seconds of training and of the test, without the validations."""
    reserved_bytes: int
    """Peak that PyTorch reserved, in training and generation."""
    forgetting: float
    """Rise of the loss on 100 texts of Wikipedia, in nats per token."""
    date: str


PUBLISHED = (
    Published("LoRA r32, q and v", 631, 9175040, 36715216, 942, 22292725760, 0.0500, "2026-07-15"),
    Published("LoRA r64, q and v", 625, 18350080, 73415408, 967, 22552772608, 0.0594, "2026-07-15"),
    Published(
        "rsLoRA r64, q and v", 677, 18350080, 73415408, 966, 22561161216, 0.1106, "2026-07-15"
    ),
    Published("DoRA r32, q and v", 619, 9289728, 37181760, 1191, 24532484096, 0.0506, "2026-07-15"),
    Published("LoRA r10, MLP", 652, 9461760, 37868984, 1050, 24698159104, 0.0318, "2026-07-15"),
    Published(
        "BD-LoRA r14, MLP (block-diagonal factors)",
        642,
        8429568,
        33740152,
        1239,
        24685576192,
        0.0298,
        "2026-07-15",
    ),
    Published(
        "OFT r32, q and v (block-diagonal rotations)",
        648,
        8171520,
        32693568,
        1192,
        22332571648,
        0.0412,
        "2026-07-15",
    ),
    Published("HiRA r32, q and v", 677, 9175040, 36714432, 1286, 23597154304, 0.1300, "2026-07-15"),
    Published(
        "Lily r140, MLP (the best)",
        694,
        9485280,
        835056616,
        1324,
        25614614528,
        0.2161,
        "2026-07-15",
    ),
    Published(
        "full fine-tuning", 622, 3212749824, 6425499648, 2147, 38868615168, 0.0300, "2026-07-14"
    ),
)
"""From `results/*.json`; transformers 5.13.1, PyTorch 2.13. Learning rate 1e-4, but 4.5e-3 for HiRA
and 1e-5 for full fine-tuning."""


# --- decoding ------------------------------------------------------------------------------------


class Decoding(NamedTuple):
    """How tokens of an answer are chosen."""

    temperature: float
    """0 for the likeliest token."""
    top_p: float

    def describe(self) -> str:
        """Return it in words."""
        if not self.temperature:
            return "the likeliest token each time (greedy)"
        return f"drawn at temperature {self.temperature:g} and top-p {self.top_p:g}, seed 0"


def decoding_of(generation_config: dict[str, object]) -> Decoding:
    """Return what the protocol does with a model of this generation config.

    Its settings leave the choice of tokens open, and transformers 5, with which the published
    figures were made, then follows the model's generation_config.json.

    Raises:
        UserError: if a value in it is not a number that it can be.
    """
    if generation_config.get("do_sample") is not True:
        return Decoding(0.0, 1.0)
    values = [generation_config.get(name, 1.0) for name in ("temperature", "top_p")]
    numbers = [float(v) for v in values if isinstance(v, int | float) and v > 0]
    if len(numbers) < len(values) or numbers[1] > 1:
        raise UserError(
            "generation_config.json must have a temperature above 0 and top_p in (0, 1]; got "
            f"temperature={values[0]!r}, top_p={values[1]!r}; repair it, or give --greedy"
        )
    return Decoding(numbers[0], numbers[1])
