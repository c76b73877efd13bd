"""Data: rows of text or tokens to micro batches for one rank, which comes in as an int."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diablo_ds.loss import IGNORE_LABEL

SAMPLES_FOLDER = Path(__file__).parent / "samples" / "gsm8k"
PAD_TO_MULTIPLE = 8
"""Micro batches are padded to a multiple of this many tokens; matrix units like round sizes."""


class Example(NamedTuple):
    """One tokenised example; both fields have the same length, at most ``max_length``."""

    input_ids: Sequence[int]
    labels: Sequence[int]
    """The token at each position, or `IGNORE_LABEL` where it carries no loss."""


class MicroBatch(NamedTuple):
    """What one rank puts through one forward; each ``[micro_batch, seq]``, int64."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> MicroBatch:
        """Return the micro batch on a device."""
        return MicroBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


@dataclass(frozen=True)
class Examples:
    """A set of examples in a fixed order, in memory or memory-mapped.

    ``rows`` gives, by index, a mapping with "input_ids" and "labels".
    """

    rows: Any
    indices: Sequence[int]
    lengths: Sequence[int]
    """Tokens of each example in ``indices``, after a cut."""
    source: str
    num_dropped: int = 0
    num_cut: int = 0

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        """Return one example, cut to its length."""
        row = self.rows[self.indices[index]]
        length = self.lengths[index]
        return Example(row["input_ids"][:length], row["labels"][:length])

    def split(self, share: float, seed: int) -> tuple[Examples, Examples]:
        """Split off a random share, at least one example, that depends on the seed alone."""
        if len(self) < 2:
            raise ValueError(
                "data must have at least 2 examples to hold some out; got "
                f"{len(self)} in {self.source}; name held-out data, or set heldout_share to 0"
            )
        order = _permutation(len(self), seed)
        num_heldout = max(1, round(share * len(self)))
        return self._subset(sorted(order[num_heldout:])), self._subset(sorted(order[:num_heldout]))

    def _subset(self, chosen: Sequence[int]) -> Examples:
        indices = [self.indices[i] for i in chosen]
        lengths = [self.lengths[i] for i in chosen]
        return Examples(self.rows, indices, lengths, self.source, self.num_dropped, self.num_cut)

    def describe(self) -> str:
        """Return counts as a line of text, with what was dropped or cut."""
        text = f"{len(self):,} examples, {sum(self.lengths):,} tokens from {self.source}"
        if self.num_dropped:
            text += f"; {self.num_dropped:,} longer than max_length dropped"
        if self.num_cut:
            text += f"; {self.num_cut:,} longer than max_length cut"
        return text


def load_data(
    data: str,
    heldout_data: str,
    heldout_share: float,
    *,
    tokenizer: Any,
    vocab_size: int,
    max_length: int,
    overlong: str,
    seed: int,
) -> tuple[Examples, Examples | None]:
    """Load the training examples and the held-out ones.

    Args:
        data: "default", a prepared dataset's folder, or a JSONL file.
        heldout_data: the same for the held-out part; empty to take it from ``data``.
        heldout_share: share to hold out where ``data`` has no held-out part; 0 for none.
        tokenizer: a Hugging Face tokenizer with an end token.
        vocab_size: number of token ids that the model knows.
        max_length: longest example, in tokens.
        overlong: "drop", "cut" or "error".
        seed: decides which rows are held out.

    Raises:
        ValueError: if a file is missing, empty or malformed, or no example is left.
    """
    if data == "default":
        data, heldout_data = (
            str(SAMPLES_FOLDER / "train.jsonl"),
            str(SAMPLES_FOLDER / "heldout.jsonl"),
        )

    def load(path: Path, part: str) -> Examples:
        rows, lengths, source = _load_rows(path, part, tokenizer, vocab_size)
        return _limit_length(rows, lengths, source, max_length, overlong)

    path = Path(data)
    train = load(path, "train")
    if heldout_data:
        return train, load(Path(heldout_data), "heldout")
    if (path / "heldout").is_dir():
        return train, load(path, "heldout")
    return train.split(heldout_share, seed) if heldout_share else (train, None)


def _load_rows(
    path: Path, part: str, tokenizer: Any, vocab_size: int
) -> tuple[Any, Sequence[int], str]:
    """Return rows, the length of each in tokens, and a name for messages."""
    if path.is_dir():
        return _load_prepared(path, part, vocab_size)
    if not path.is_file():
        raise ValueError(f"data must be an existing file or folder; got {path}")
    rows = tokenize(read_jsonl(path), tokenizer)
    _check_vocabulary(max(max(row["input_ids"]) for row in rows), vocab_size, str(path))
    return rows, [len(row["input_ids"]) for row in rows], str(path)


def _load_prepared(path: Path, part: str, vocab_size: int) -> tuple[Any, Sequence[int], str]:
    import datasets
    import pyarrow.compute as pc

    try:
        rows = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"data folder must be a prepared dataset; got {path}: {error}") from None
    if isinstance(rows, datasets.DatasetDict):
        if part not in rows:
            raise ValueError(
                f"prepared dataset must have a part {part!r}; got {', '.join(rows)} in {path}"
            )
        rows = rows[part]
    if not {"input_ids", "labels"} <= set(rows.column_names):
        raise ValueError(
            "prepared dataset must have columns input_ids and labels; got "
            f"{', '.join(rows.column_names)} in {path}; make it with a script of data_prep"
        )
    lengths = [
        pc.list_value_length(rows.data.column(c)).to_pylist() for c in ("input_ids", "labels")
    ]
    if lengths[0] != lengths[1]:
        raise ValueError(f"input_ids and labels must have equal lengths in each row; got {path}")
    largest = pc.max(pc.list_flatten(rows.data.column("input_ids"))).as_py()
    _check_vocabulary(largest or 0, vocab_size, str(path))
    return rows, lengths[0], f"{path} ({part})"


def _check_vocabulary(largest_id: int, vocab_size: int, source: str) -> None:
    if largest_id >= vocab_size:
        raise ValueError(
            "token ids must be below the model's vocabulary size; got "
            f"{largest_id}, vocab_size={vocab_size} in {source}; was it made for another tokenizer?"
        )


def _limit_length(
    rows: Any, lengths: Sequence[int], source: str, max_length: int, overlong: str
) -> Examples:
    """Apply the policy for examples longer than ``max_length``."""
    too_long = sum(length > max_length for length in lengths)
    if too_long and overlong == "error":
        first = next(i for i, length in enumerate(lengths) if length > max_length)
        raise ValueError(
            f"each example must fit max_length; got {too_long} longer than "
            f"max_length={max_length} in {source}, the first is row {first + 1} with "
            f"{lengths[first]} tokens; raise max_length, or set overlong to drop or cut"
        )
    indices: Sequence[int] = range(len(lengths))
    num_dropped = num_cut = 0
    if too_long and overlong == "drop":
        indices, num_dropped = [i for i in indices if lengths[i] <= max_length], too_long
    elif too_long:
        # A row whose prompt alone fills max_length has no target left.
        kept = [
            i
            for i in indices
            if lengths[i] <= max_length or _has_target(rows[i]["labels"][1:max_length])
        ]
        num_dropped = len(lengths) - len(kept)
        indices, num_cut = kept, too_long - num_dropped
    if not indices:
        raise ValueError(
            f"data must have at least one example of at most {max_length} tokens; got "
            f"{len(lengths)} rows, {too_long} too long, in {source}"
        )
    kept_lengths = [min(lengths[i], max_length) for i in indices]
    return Examples(rows, indices, kept_lengths, source, num_dropped, num_cut)


def _has_target(labels: Sequence[int]) -> bool:
    return any(label != IGNORE_LABEL for label in labels)


def read_jsonl(path: Path) -> list[tuple[str, str]]:
    """Read a JSONL file of objects with "prompt" and "completion".

    Raises:
        ValueError: for the first bad line, with its number and what is wrong; if no row is there.
    """
    pairs = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                pairs.append(_parse_line(line, f"{path}, line {number}"))
    if not pairs:
        raise ValueError(f"data must have at least one row; got none in {path}")
    return pairs


def _parse_line(line: bytes, where: str) -> tuple[str, str]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"data must be UTF-8; got {where}: {error.reason}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"each line must be valid JSON; got {where}: {error.msg}") from None
    if not isinstance(row, dict):
        raise ValueError(f"each line must be a JSON object; got {where}: {type(row).__name__}")
    for field in ("prompt", "completion"):
        if not isinstance(row.get(field), str):
            shown = repr(row[field]) if field in row else "no such field"
            raise ValueError(f"each row must have a text field {field!r}; got {where}: {shown:.80}")
    if not row["completion"]:
        raise ValueError(f"each row must have a completion that is not empty; got {where}")
    return row["prompt"], row["completion"]


def tokenize(pairs: Sequence[tuple[str, str]], tokenizer: Any) -> list[dict[str, list[int]]]:
    """Tokenise prompts and completions apart, so that the border between them is exact.

    An example is [BOS] + prompt + completion + end token, with BOS where the tokenizer itself
    adds one. The loss is on the completion and the end token only.
    """
    start = _start_tokens(tokenizer)
    prompts = _token_lists(tokenizer, [prompt for prompt, _ in pairs])
    completions = _token_lists(tokenizer, [completion for _, completion in pairs])
    rows = []
    for prompt, completion in zip(prompts, completions, strict=True):
        masked = [*start, *prompt]
        targets = [*completion, tokenizer.eos_token_id]
        rows.append(
            {
                "input_ids": [*masked, *targets],
                "labels": [*[IGNORE_LABEL] * len(masked), *targets],
            }
        )
    return rows


def _start_tokens(tokenizer: Any) -> list[int]:
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and bos in tokenizer("a").input_ids[:1] else []


def _token_lists(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    tokens: list[list[int]] = tokenizer(texts, add_special_tokens=False).input_ids
    return tokens


def collate(examples: Sequence[Example], *, pad_id: int) -> MicroBatch:
    """Pad examples on the right to a common length."""
    longest = max(len(example.input_ids) for example in examples)
    width = -(-longest // PAD_TO_MULTIPLE) * PAD_TO_MULTIPLE
    input_ids = torch.full((len(examples), width), pad_id)
    labels = torch.full((len(examples), width), IGNORE_LABEL)
    attention_mask = torch.zeros((len(examples), width), dtype=torch.int64)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        input_ids[row, :length] = torch.tensor(example.input_ids)
        labels[row, :length] = torch.tensor(example.labels)
        attention_mask[row, :length] = 1
    return MicroBatch(input_ids, attention_mask, labels)


@dataclass(frozen=True)
class BatchSource:
    """Deals examples out to ranks as micro batches of equal count, by pure functions of the step.

    The order depends on seed and epoch alone, so that a run can go on at any step without reading
    what came before, and the global batch is the same set of examples at any world size. Rows
    beyond the end of the data are empty: one pad token, no target.
    """

    examples: Examples
    pad_id: int
    micro_batch: int
    rank: int
    world_size: int

    def train_step(
        self, step: int, *, accumulation_steps: int, num_examples: int, seed: int
    ) -> Iterator[MicroBatch]:
        """Yield this rank's micro batches of a step.

        Args:
            step: step to take, counted from 0.
            accumulation_steps: micro batches per rank.
            num_examples: examples in the whole run, counting repeats; what lies beyond is empty.
            seed: seed of the order.
        """
        global_batch = accumulation_steps * self._micro_step
        first = step * global_batch
        end = min(first + global_batch, num_examples)
        chosen = [self._shuffled(position, seed) for position in range(first, end)]
        yield from self._deal(chosen, global_batch - len(chosen))

    def heldout(self) -> Iterator[MicroBatch]:
        """Yield this rank's micro batches of one pass over all examples."""
        num_examples = len(self.examples)
        yield from self._deal(range(num_examples), -num_examples % self._micro_step)

    def _shuffled(self, position: int, seed: int) -> int:
        epoch, index = divmod(position, len(self.examples))
        return _permutation(len(self.examples), seed + epoch)[index]

    def _deal(self, chosen: Sequence[int], num_empty: int) -> Iterator[MicroBatch]:
        """Deal examples of similar length together: less padding, and equal work on all ranks."""
        by_length = sorted(chosen, key=lambda index: -self.examples.lengths[index])
        rows: list[int | None] = [*by_length, *[None] * num_empty]
        empty = Example([self.pad_id], [IGNORE_LABEL])
        for start in range(self.rank * self.micro_batch, len(rows), self._micro_step):
            mine = rows[start : start + self.micro_batch]
            examples = [empty if index is None else self.examples[index] for index in mine]
            yield collate(examples, pad_id=self.pad_id)

    @property
    def _micro_step(self) -> int:
        """Examples that all ranks together put through one forward."""
        return self.micro_batch * self.world_size


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = torch.randperm(size, generator=generator).tolist()
    return order
