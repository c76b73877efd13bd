"""The study's data: files with a training part and a held-out part that shares no question with it.

The parts are written as JSON lines, in the form that the sources have, and read like any other data
of a run. So `diablo-ds train` takes them as well.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from diablo_ds.data.corpora.raw_rows import Unreadable, parse
from diablo_ds.data.corpora.reading import read_rows
from diablo_ds.data.packing import permutation
from diablo_ds.data.prepare.decontamination import ExcludedQuestions, load_questions
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import write_text

TASKS = {
    "boolq": "boolq",
    "piqa": "piqa",
    "social_i_qa": "social_i_qa",
    "winogrande": "winogrande",
    "arc_easy": "ARC-Easy",
    "arc_challenge": "ARC-Challenge",
    "openbookqa": "openbookqa",
}
"""Folder of each task in the commonsense data of LLM-Adapters."""
GSM8K = "gsm8k"
HELDOUT_PER_TASK, HELDOUT_GSM8K = 120, 660
HELDOUT_SHARE = 0.2
"""Of a task's rows, at most."""
SPLIT_SEED = 20_230
"""Of the split, which is the same for every spec."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Sources:
    """Where the study's data come from."""

    commonsense: str = ""
    """Folder with a folder for each task, in LLM-Adapters' form: its directory ``dataset``."""
    gsm8k: str = ""
    """Folder of train.jsonl.gz and test.jsonl."""
    cache_folder: str = ""
    """Folder that the parts are written to; a temporary one where it is empty."""


@dataclass(frozen=True)
class Parts:
    """The files of one kind of data, and what is in them."""

    train: Path
    heldout: Path
    digest: str
    """SHA-256 over both files."""
    counts: Mapping[str, Any]
    """Rows of each part and, by reason, of those that were left out as contaminated."""


def write_parts(sources: Sources, kind: str, folder: Path) -> Parts:
    """Split and decontaminate a kind of data, and write its parts.

    Args:
        sources: where the data come from.
        kind: one of `benchmarks.quality.spec.DATA`.
        folder: to write to.

    Raises:
        UserError: if the sources lack the data.
    """
    given = getattr(sources, kind)
    if not given or not Path(given).is_dir():
        raise UserError(f"{kind} needs a folder of its data; got {kind}={given!r}")
    rows, tests = (_gsm8k_rows if kind == GSM8K else _commonsense_rows)(Path(given))
    train, heldout, counts = _split(rows, tests)
    texts = [_lines(_in_turn(part)) for part in (train, heldout)]
    files = [folder / kind / name for name in ("train.jsonl", "heldout.jsonl")]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    for file, text in zip(files, texts, strict=True):
        write_text(file, text)
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    return Parts(files[0], files[1], digest, counts)


def _commonsense_rows(folder: Path) -> tuple[dict[str, list[Row]], list[Path]]:
    rows, tests = {}, []
    for task, name in TASKS.items():
        if files := sorted((folder / name).glob("train*.json*")):
            rows[task] = [_commonsense_row(task, row) for row in _read(files[0])]
            tests += sorted((folder / name).glob("test*.json*"))
    if not rows:
        raise UserError(
            "commonsense must have the training file of a task, such as boolq/train.json; got "
            f"none in {folder}"
        )
    return rows, tests


def _commonsense_row(task: str, row: Row) -> Row:
    instruction = f"{row['instruction'].rstrip()}\n\n"  # the answer follows, with no frame
    return {
        "instruction": instruction,
        "input": row["input"],
        "output": row["output"],
        "task": task,
    }


def _gsm8k_rows(folder: Path) -> tuple[dict[str, list[Row]], list[Path]]:
    files = sorted(folder.glob("train.jsonl*"))
    if not files:
        raise UserError(f"gsm8k must have a file train.jsonl or train.jsonl.gz; got none: {folder}")
    rows = [{"question": row["question"], "answer": row["answer"]} for row in _read(files[0])]
    return {GSM8K: rows}, sorted(folder.glob("test.jsonl*"))


def _read(path: Path) -> Iterable[Row]:
    for raw in read_rows(path):
        row = parse(raw.value)
        if isinstance(row, Unreadable):
            raise UserError(f"each row must be readable; got {path}, line {raw.line}: {row.reason}")
        yield row


def _question(row: Row) -> str:
    return str(row["question"] if "question" in row else f"{row['instruction']}\n{row['input']}")


def _split(
    rows: Mapping[str, Sequence[Row]], tests: Sequence[Path]
) -> tuple[dict[str, list[Row]], dict[str, list[Row]], dict[str, Any]]:
    """Return the training rows of each task, equally many; the held-out ones; and counts.

    No training row asks what a held-out row or a test does, or shares 13 words in a row with it.
    """
    most = HELDOUT_GSM8K if GSM8K in rows else HELDOUT_PER_TASK
    heldout, rest = {}, {}
    for task, own in rows.items():
        shuffled = [own[index] for index in permutation(len(own), SPLIT_SEED)]
        count = min(most, int(HELDOUT_SHARE * len(shuffled)))
        heldout[task], rest[task] = shuffled[:count], shuffled[count:]
    excluded = ExcludedQuestions(
        [*map(_question, chain.from_iterable(heldout.values())), *load_questions(tests)]
    )
    train: dict[str, list[Row]] = {}
    contaminated: Counter[str] = Counter()
    share = min(map(len, rest.values()))
    for task in sorted(rest, key=lambda task: len(rest[task])):  # the shortest decides the share
        train[task] = []
        for row in rest[task]:
            if len(train[task]) == share:
                break
            reason = excluded.match(_question(row))
            contaminated.update([reason] if reason else [])
            if not reason:
                train[task].append(row)
        share = min(share, len(train[task]))
    train = {task: train[task][:share] for task in rows}
    counts = {
        "train": {task: len(own) for task, own in train.items()},
        "heldout": {task: len(own) for task, own in heldout.items()},
        "contaminated": dict(contaminated),
        "test_files": len(tests),
    }
    return train, heldout, counts


def _in_turn(rows: Mapping[str, Sequence[Row]]) -> list[Row]:
    """Return the first row of each task, then the second of each: any beginning has all tasks."""
    return [row for turn in zip_longest(*rows.values()) for row in turn if row is not None]


def _lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
