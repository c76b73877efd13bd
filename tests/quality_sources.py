"""Small commonsense data in LLM-Adapters' form, and GSM8K's, for tests of the study of quality."""

from __future__ import annotations

import json
import random
from pathlib import Path

from benchmarks.quality.data import TASKS

TASK_LABELS = {
    "piqa": ("solution1", "solution2"),
    "winogrande": ("option1", "option2"),
    "arc_easy": ("answer1", "answer2", "answer3", "answer4"),
}
"""Tasks whose labels differ in one byte, as tests' tokenizer has a token per byte."""


def commonsense_row(task: str, number: int, label: str) -> dict[str, str]:
    """A question that no other row asks."""
    labels = "/".join(TASK_LABELS[task])
    return {
        "instruction": f"Please choose one of: {task} number {number}?\n\nAnswer format: {labels}",
        "input": "",
        "output": f"the correct answer is {label}",
        "answer": label,
    }


def write_sources(folder: Path, counts: dict[str, int], *, seed: int = 0) -> dict[str, str]:
    """Write training files and a test file, and return the fields of `Sources`."""
    draw = random.Random(seed)
    for task, count in counts.items():
        own = folder / "commonsense" / TASKS[task]
        own.mkdir(parents=True)
        rows = [commonsense_row(task, n, draw.choice(TASK_LABELS[task])) for n in range(count)]
        (own / "train.json").write_text(json.dumps(rows))
    test = [commonsense_row("piqa", number, "solution1") for number in (0, 1000)]
    (folder / "commonsense" / TASKS["piqa"] / "test.json").write_text(json.dumps(test))
    numbers = [(draw.randint(1, 9), draw.randint(1, 9)) for _ in range(40)]
    problems = [
        {"question": f"Row {n}: what is {a}+{b}?", "answer": f"It is {a + b}.\n#### {a + b}"}
        for n, (a, b) in enumerate(numbers)
    ]
    (folder / "gsm8k").mkdir()
    for name, part in (("train.jsonl", problems[:36]), ("test.jsonl", problems[36:])):
        (folder / "gsm8k" / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    return {
        "commonsense": str(folder / "commonsense"),
        "gsm8k": str(folder / "gsm8k"),
        "cache_folder": str(folder / "parts"),
    }
