"""The commands `diablo-ds prepare ...` and the scripts of data_prep/: options, one call."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click

from diablo_ds.cli.console import CONTEXT, clean_errors
from diablo_ds.cli.options import (
    GroupedCommand,
    GroupedGroup,
    from_options,
    options_of,
    remote_code_option,
    sharing_options,
)
from diablo_ds.config.choices import AUTO, CORPORA, Corpus
from diablo_ds.config.setting import check_settings, setting
from diablo_ds.data.prepare.options import PrepareOptions


class _Help(NamedTuple):
    contents: str
    example: str
    """Options that a user of the corpus would give."""


_HELP: dict[Corpus, _Help] = {
    "auto": _Help(
        "Rows known by their fields: conversations, messages, prompt and completion, instruction "
        "and output, question and answer, text. The default, so that its name may be left out.",
        "--source sharegpt.json --template auto",
    ),
    "commonsense": _Help(
        "Commonsense170K, or its eight tasks as LLM-Adapters publishes them.",
        "--source LLM-Adapters/dataset --mix boolq=1000 --mix hellaswag=0.25",
    ),
    "math": _Help(
        "GSM8K, MetaMathQA, Math10K and MATH.",
        "--source gsm8k/train.jsonl --exclude gsm8k/test.jsonl",
    ),
    "code": _Help(
        "CodeAlpaca, MBPP, and instruction data such as CodeFeedback.",
        "--source code_alpaca_20k.json --source mbpp.jsonl --val-share 0.02",
    ),
    "safety": _Help(
        "Instructions mixed with safety examples, and refusals.",
        "--source alpaca=alpaca_data.json --source safety=safety_only.json "
        "--mix alpaca=20000 --mix safety=2000",
    ),
}


@dataclass(frozen=True, kw_only=True)
class PreviewOptions:
    """What is shown of a prepared dataset.

    Raises:
        UserError: if a value is illegal.
    """

    inspect: Path | None = setting(
        None,
        "Show examples, lengths and totals of a prepared dataset, and draw its lengths.",
        "start",
    )
    num: int = setting(3, "Examples that --inspect shows.", "start", minimum=0)
    tokenizer: str = setting(
        "", "Tokenizer for --inspect, if it moved.", "start", shown_default="as recorded"
    )

    def __post_init__(self) -> None:
        check_settings(self)


class _PrepareGroup(GroupedGroup):
    """Takes the corpus auto where options are given without the name of a corpus."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        first = args[0].split("=")[0].replace("_", "-") if args else ""
        if first.startswith("-") and first not in own:
            args = [AUTO, *args]
        return super().parse_args(ctx, args)


@click.group(cls=_PrepareGroup, context_settings=CONTEXT, invoke_without_command=True)
@options_of(PreviewOptions)
@click.pass_context
def prepare(context: click.Context, /, **values: Any) -> None:
    """Tokenise a corpus into a dataset for training.

    Without the name of a corpus rows are known by their fields.
    """
    inspected = values["inspect"]
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

        options = from_options(PreviewOptions, values)
        lines = inspect_dataset(inspected, options.num, options.tokenizer, find_tokenizer)
        for line in lines:
            click.echo(line)


def _command(family: Corpus) -> click.Command:
    @sharing_options
    @remote_code_option
    @options_of(PrepareOptions)
    def command(**values: Any) -> None:
        with clean_errors():
            from diablo_ds.data.prepare.manifest import describe
            from diablo_ds.data.prepare.pipeline import prepare as prepare_dataset
            from diablo_ds.model.finding import find_tokenizer

            if values["num_proc"] is None:
                values["num_proc"] = len(os.sched_getaffinity(0))
            options = from_options(PrepareOptions, values, family=family)
            manifest = prepare_dataset(options, find_tokenizer)
            click.echo(describe(manifest))
            click.echo(f"Done: {options.output}")
            output = str(options.output)
            click.echo(f"Next: diablo-ds prepare --inspect {shlex.quote(output)}")
            click.echo(f"      diablo-ds train --data {shlex.quote(output)} --packing")

    help_text = f"""{_HELP[family].contents}

    \b
    diablo-ds prepare {family} --output prepared/{family} \\
        {_HELP[family].example}"""
    return click.command(family, cls=GroupedCommand, help=help_text, context_settings=CONTEXT)(
        command
    )


for _family in CORPORA:
    prepare.add_command(_command(_family))
