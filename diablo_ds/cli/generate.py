"""The command `diablo-ds generate`: prompts in, text out, piece by piece."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diablo_ds.cli.console import CONTEXT, clean_errors
from diablo_ds.cli.options import GroupedCommand, from_options, options_of, remote_code_option
from diablo_ds.errors import UserError
from diablo_ds.files.named_files import open_named
from diablo_ds.generation.options import GenerateOptions
from diablo_ds.ranks.terminal import ShownStream

if TYPE_CHECKING:
    from diablo_ds.generation.answering import Answering


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@remote_code_option
@options_of(GenerateOptions)
def generate(**values: Any) -> None:
    """Generate text with a trained adapter, greedily, with the template that it was trained with.

    Only answers go to stdout. --compare-base shows the base model's beside them.
    """
    with clean_errors():
        options = from_options(GenerateOptions, values)
        prompts = list(options.prompt) or ([] if options.file is None else [_read(options.file)])
        from diablo_ds.adapter.finding import find_adapter
        from diablo_ds.adapter.storage import load_adapter_config
        from diablo_ds.generation.answering import load_answering
        from diablo_ds.model.finding import find_base

        adapter = find_adapter(options.adapter)
        base = find_base(options.base, load_adapter_config(adapter), options.adapter)
        answering = load_answering(options, adapter, base)
        click.echo(f"Template {answering.form.text}, {answering.form.origin}.", err=True)
        if options.chat:
            _chat(answering, options.compare_base)
        for prompt in prompts:
            messages = [{"role": "user", "content": prompt}]
            _answer(answering, messages, messages if options.compare_base else None)


def _chat(answering: Answering, compare_base: bool) -> None:
    """Answer each line, with what was said before where the template is for conversations."""
    mine: list[dict[str, str]] = []
    of_base: list[dict[str, str]] = []
    for line in _lines():
        if answering.form.template != "chat":
            mine, of_base = [], []
        question = {"role": "user", "content": line}
        mine.append(question)
        of_base.append(question)
        said, base_said = _answer(answering, mine, of_base if compare_base else None)
        mine.append({"role": "assistant", "content": said})
        of_base.append({"role": "assistant", "content": base_said})


def _lines() -> Iterator[str]:
    """Yield what a person types, or another program writes, until its end."""
    while True:
        if sys.stdin.isatty():
            click.echo("> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _answer(
    answering: Answering, messages: list[dict[str, str]], of_base: list[dict[str, str]] | None
) -> tuple[str, str]:
    """Print the answer, below the base's where it is asked for; return both texts."""
    base_said = ""
    if of_base is not None:
        click.echo("[base]")
        base_said = answering.answer(of_base, _write, with_adapter=False)
        click.echo("\n[adapter]")
    said = answering.answer(messages, _write)
    click.echo()
    return said, base_said


def _write(text: str) -> None:
    if isinstance(sys.stdout, ShownStream) and not sys.stdout.isatty():
        sys.stdout.write_as_is(text)
    else:
        sys.stdout.write(text)
    sys.stdout.flush()


def _read(path: Path) -> str:
    try:
        with open_named(path) as file:
            text = file.read().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"file must be readable text in UTF-8; got {path}: {error}") from None
    text = text.removesuffix("\n")
    if not text:
        raise UserError(f"file must hold a prompt; got {path}, which is empty")
    return text
