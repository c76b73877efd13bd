"""Make the sample that ships with diablo_ds from GSM8K's training questions (MIT licence).

python data_prep/gsm8k_sample.py --source gsm8k/train.jsonl --output diablo_ds/samples/gsm8k
"""

from __future__ import annotations

import gzip
import json
from itertools import islice
from pathlib import Path

import click

from diablo_ds.files import write_text

NUM_TRAIN, NUM_HELDOUT = 320, 40
MAX_CHARACTERS = 1400
"""Longer rows may exceed the default of 512 tokens and are left out."""
PROMPT = (
    "{question}\nAnswer the above question. First think step by step and then answer the final "
    "number.\n"
)


@click.command()
@click.option("--source", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), required=True)
def main(source: Path, output: Path) -> None:
    """Write train.jsonl and heldout.jsonl: the first rows of the source, in its order."""
    with gzip.open(source) if source.suffix == ".gz" else source.open("rb") as file:
        pairs = (_pair(json.loads(line)) for line in file)
        short = (row for row in pairs if sum(map(len, row.values())) <= MAX_CHARACTERS)
        rows = list(islice(short, NUM_TRAIN + NUM_HELDOUT))
    output.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", rows[:NUM_TRAIN]), ("heldout", rows[NUM_TRAIN:])):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        write_text(output / f"{name}.jsonl", text)


def _pair(row: dict[str, str]) -> dict[str, str]:
    return {
        "prompt": PROMPT.format(question=row["question"]),
        "completion": row["answer"].replace("#### ", "The final answer is: "),
    }


if __name__ == "__main__":
    main()
