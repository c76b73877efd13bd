"""The command `diablo-ds merge`: options, one call."""

from __future__ import annotations

from typing import Any

import click

from diablo_ds.cli.console import CONTEXT, clean_errors
from diablo_ds.cli.options import GroupedCommand, from_options, options_of
from diablo_ds.conversion.merging.options import MergeOptions


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@options_of(MergeOptions)
def merge(**values: Any) -> None:
    """Add an adapter to its base for good, and write a model folder that any tool loads.

    Works from files to files, a piece of one tensor at a time. Interrupted, it continues when the
    same command is given again.
    """
    with clean_errors():
        options = from_options(MergeOptions, values)
        from diablo_ds.conversion.merging.merge import merge_adapter
        from diablo_ds.ranks.log import set_up_logging

        set_up_logging(is_main_process=True)
        merged = merge_adapter(options)
        click.echo(merged.text)
        rate = merged.num_bytes / 1e9 / merged.seconds
        click.echo(
            f"Merged {merged.num_bytes / 1e9:.3f} GB in {merged.seconds:.1f} s: {rate:.2f} GB/s"
        )
        click.echo(f"Done: {merged.output}")
