"""Tokenise a JSONL file of prompt and completion into a prepared dataset.

python data_prep/jsonl.py --source pairs.jsonl --tokenizer MODEL_FOLDER --output prepared/
"""

from __future__ import annotations

from pathlib import Path

import click
import datasets

from diablo_ds.cli import clean_errors
from diablo_ds.data import read_jsonl, tokenize
from diablo_ds.files import new_folder
from diablo_ds.model import load_tokenizer


@click.command()
@click.option("--source", type=click.Path(path_type=Path), required=True, help="Training rows.")
@click.option("--heldout-source", type=click.Path(path_type=Path), help="Held-out rows.")
@click.option("--tokenizer", type=click.Path(path_type=Path), required=True, help="Model folder.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="New folder.")
def main(source: Path, heldout_source: Path | None, tokenizer: Path, output: Path) -> None:
    """Write a dataset with the columns input_ids and labels, and the parts train and heldout."""
    with clean_errors():
        if output.exists():
            raise ValueError(f"output must be a new folder; got output={str(output)!r}")
        loaded = load_tokenizer(tokenizer)
        sources = {"train": source} | ({"heldout": heldout_source} if heldout_source else {})
        parts = {}
        for part, path in sources.items():
            if not path.is_file():
                raise ValueError(f"source must be an existing file; got {path}")
            parts[part] = datasets.Dataset.from_list(tokenize(read_jsonl(path), loaded))
            click.echo(f"{part}: {len(parts[part]):,} rows from {path}")
        with new_folder(output) as temporary:
            datasets.DatasetDict(parts).save_to_disk(temporary)


if __name__ == "__main__":
    main()
