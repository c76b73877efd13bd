"""The commands that make adapters from others and from checkpoints: `combine`, `import`, `diff`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from diablo_ds.cli.console import CONTEXT, clean_errors, echo
from diablo_ds.cli.options import (
    GroupedCommand,
    from_options,
    options_of,
    remote_code_option,
    sharing_options,
)
from diablo_ds.config.setting import REQUIRED, check_settings, setting


@dataclass(frozen=True, kw_only=True)
class CombineOptions:
    """Options of `diablo-ds combine`.

    Raises:
        UserError: if a value is illegal.
    """

    output: Path = setting(REQUIRED, "New folder of the adapter.", "run")

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of `diablo-ds import`.

    Raises:
        UserError: if a value is illegal.
    """

    base: str = setting(
        REQUIRED,
        "Base model that the file was trained on: default, a folder, hf://owner/name.",
        "model",
    )
    output: Path = setting(REQUIRED, "New folder of the adapter.", "run")

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class DiffOptions:
    """Options of `diablo-ds diff`.

    Raises:
        UserError: if a value is illegal.
    """

    base: str = setting(REQUIRED, "Base model: default, a folder, or hf://owner/name.", "model")
    tuned: str = setting(
        REQUIRED, "Model that was made of it: a folder or hf://owner/name.", "model"
    )
    num_blocks: str = setting(
        "",
        'Block count N of each delta, or "auto:<share>", e.g. auto:1%.',
        "adapter",
        shown_default="the largest that holds all of the change",
    )
    targets: tuple[str, ...] = setting(
        (),
        "Layers that get a delta, as in training; repeatable.",
        "adapter",
        shown_default="all linear layers that changed",
    )
    output: Path = setting(REQUIRED, "New folder of the adapter.", "run")

    def __post_init__(self) -> None:
        check_settings(self)


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@click.argument("adapters", metavar="ADAPTER=WEIGHT...", nargs=-1, required=True)
@sharing_options
@options_of(CombineOptions)
def combine(adapters: tuple[str, ...], **values: Any) -> None:
    """Write the weighted sum of adapters of one base and geometry: combine A=0.7 B=0.3."""
    with clean_errors():
        from diablo_ds.conversion.combination import combine as combine_adapters
        from diablo_ds.conversion.combination import parse_term

        options = from_options(CombineOptions, values)
        config = combine_adapters([parse_term(text) for text in adapters], options.output)
        echo(f"{len(config.num_blocks)} deltas, each the sum of {len(adapters)}")
        echo(f"Done: {options.output}")


@click.command("import", cls=GroupedCommand, context_settings=CONTEXT)
@click.argument("file", type=click.Path(path_type=Path))
@sharing_options
@remote_code_option
@options_of(ImportOptions)
def import_(file: Path, **values: Any) -> None:
    """Write the adapter in a file of the method's published code, `adapter.chkpt`."""
    with clean_errors():
        from diablo_ds.conversion.published_files import import_published

        options = from_options(ImportOptions, values)
        imported = import_published(file, options.base, options.output)
        counts = sorted(set(imported.config.num_blocks.values()))
        echo(
            f"{len(imported.config.num_blocks)} deltas, num_blocks "
            f"{', '.join(map(str, counts))}, stored in {', '.join(imported.dtypes)}"
        )
        if imported.bare_layers:
            echo(f"Note: no delta on decoder layers {', '.join(map(str, imported.bare_layers))}")
        echo(f"Done: {options.output}")


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@sharing_options
@remote_code_option
@options_of(DiffOptions)
def diff(**values: Any) -> None:
    """Write the adapter that turns a base into a tuned model, and report what it cannot hold."""
    with clean_errors():
        from diablo_ds.conversion.difference import diff as find_difference

        options = from_options(DiffOptions, values)
        difference = find_difference(
            options.base,
            options.tuned,
            options.output,
            num_blocks=options.num_blocks,
            targets=options.targets,
        )
        echo(difference.text())
        echo(f"Done: {options.output}")
