"""The commands `diablo-ds prepare ...` and the scripts of data_prep/: options, one call."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from diablo_ds.cli.console import CONTEXT, clean_errors
from diablo_ds.config.choices import CONTROL_TOKENS, OVERLONG, TEMPLATES
from diablo_ds.data.corpora.families import FAMILIES

_HELP = {
    "commonsense": "Commonsense170K, or its eight tasks as LLM-Adapters publishes them.",
    "math": "GSM8K, MetaMathQA, Math10K and MATH.",
    "code": "CodeAlpaca, MBPP, and instruction data such as CodeFeedback.",
    "safety": "Instructions mixed with safety examples, and refusals.",
    "jsonl": "Rows of prompt and completion, messages, or plain text.",
}
_EXAMPLES = {
    "commonsense": "--source LLM-Adapters/dataset --mix boolq=1000 --mix hellaswag=0.25",
    "math": "--source gsm8k/train.jsonl --exclude gsm8k/test.jsonl",
    "code": "--source code_alpaca_20k.json --source mbpp.jsonl --val-share 0.02",
    "safety": (
        "--source alpaca=alpaca_data.json --source safety=safety_only.json "
        "--mix alpaca=20000 --mix safety=2000"
    ),
    "jsonl": "--source chats.jsonl --template chat",
}


@click.group(context_settings=CONTEXT, invoke_without_command=True)
@click.option(
    "--inspect",
    "inspected",
    type=click.Path(path_type=Path),
    help="Show examples, lengths and totals of a prepared dataset, and draw its lengths.",
)
@click.option("--num", default=3, show_default=True, help="Examples that --inspect shows.")
@click.option("--tokenizer", default="", help="Tokenizer for --inspect, if it moved.")
@click.pass_context
def prepare(context: click.Context, inspected: Path | None, num: int, tokenizer: str) -> None:
    """Tokenise a corpus into a dataset for training."""
    if context.invoked_subcommand is not None:
        if inspected is not None:
            raise click.UsageError("give --inspect PATH or a corpus to prepare, not both")
        return
    if inspected is None:
        click.echo(context.get_help())
        return
    with clean_errors():
        from diablo_ds.data.prepare.preview import inspect_dataset
        from diablo_ds.model.finding import find_tokenizer

        inspect_dataset(inspected, num, tokenizer, find_tokenizer)


def _command(family: str) -> click.Command:
    @click.option(
        "--source",
        multiple=True,
        required=True,
        help="File, folder, glob or hub name, or NAME=one of them; repeatable. "
        "JSON, JSONL, CSV, parquet, also .gz or .zst.",
    )
    @click.option("--output", type=click.Path(path_type=Path), required=True, help="New folder.")
    @click.option(
        "--tokenizer",
        default="default",
        show_default=True,
        help="Folder, SentencePiece .model file, or hub name; default is SmolLM2's.",
    )
    @click.option(
        "--template",
        type=click.Choice(("auto", *TEMPLATES)),
        default="auto",
        show_default=True,
        help="Prompt template; auto takes the corpus's own.",
    )
    @click.option(
        "--control-tokens",
        type=click.Choice(CONTROL_TOKENS),
        default="auto",
        show_default=True,
        help="Control tokens in plain rows: read them, keep them as text, or (auto) read them in "
        "rows that begin or end with one.",
    )
    @click.option(
        "--max-length", default=512, show_default=True, help="Longest example, in tokens."
    )
    @click.option(
        "--overlong",
        type=click.Choice(OVERLONG),
        default="drop",
        show_default=True,
        help="What to do with examples longer than --max-length.",
    )
    @click.option(
        "--mix",
        multiple=True,
        help="NAME=ROWS or NAME=SHARE to take of a source, at random; the others are kept whole.",
    )
    @click.option(
        "--limit", default=0, show_default=True, help="Rows to read of each source name; 0 for all."
    )
    @click.option(
        "--exclude",
        multiple=True,
        help="Test file or folder: training rows with its questions are left out.",
    )
    @click.option("--val-source", multiple=True, help="Source of the held-out part.")
    @click.option(
        "--val-share", default=0.0, show_default=True, help="Share of rows to hold out, at random."
    )
    @click.option(
        "--max-bad-rows",
        default=0.01,
        show_default=True,
        help="Share of rows that may fail to fit the corpus; above it the run fails.",
    )
    @click.option("--seed", default=0, show_default=True, help="Seed of random choices.")
    @click.option("--num-proc", type=click.IntRange(min=1), help="Processes.  [default: cores]")
    @click.option("--licence", default="", help="Licence of the data, for the record.")
    def command(**options: Any) -> None:
        with clean_errors():
            from diablo_ds.data.prepare.manifest import describe
            from diablo_ds.data.prepare.options import PrepareOptions
            from diablo_ds.data.prepare.pipeline import prepare as run
            from diablo_ds.model.finding import find_tokenizer

            options["num_proc"] = options["num_proc"] or len(os.sched_getaffinity(0))
            manifest = run(PrepareOptions(family=family, **options), find_tokenizer)
            click.echo(describe(manifest))
            click.echo(f"Done: {options['output']}")
            click.echo(f"Next: diablo-ds prepare --inspect {options['output']}")
            click.echo(f"      diablo-ds train --data {options['output']} --packing")

    help_text = f"""{_HELP[family]}

    \b
    diablo-ds prepare {family} --output prepared/{family} \\
        {_EXAMPLES[family]}"""
    return click.command(family, help=help_text, context_settings=CONTEXT)(command)


for _family in FAMILIES:
    prepare.add_command(_command(_family))
