"""The commands `diablo-ds merge` and `diablo-ds verify`: options, one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from diablo_ds.cli.console import CONTEXT, clean_errors
from diablo_ds.cli.options import (
    GroupedCommand,
    from_options,
    options_of,
    remote_code_option,
    sharing_options,
)
from diablo_ds.conversion.merging.options import MergeOptions
from diablo_ds.conversion.verification.options import Method, VerifyOptions


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@sharing_options
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
        if options.verify:
            _verify(merged.base, merged.adapter, merged.output, "auto")
        click.echo(f"Done: {merged.output}")


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@remote_code_option
@options_of(VerifyOptions)
def verify(**values: Any) -> None:
    """Compare a merged model with its base and adapter: files, and outputs where both fit.

    Prints each measured difference beside its bound. Exit code 0 if none is exceeded.
    """
    with clean_errors():
        options = from_options(VerifyOptions, values)
        from diablo_ds.adapter.finding import find_adapter
        from diablo_ds.adapter.storage import load_adapter_config
        from diablo_ds.model.finding import find_base, find_model

        adapter = find_adapter(options.adapter)
        base = find_base(options.base, load_adapter_config(adapter), options.adapter)
        _verify(base, adapter, find_model(str(options.merged)), options.method)
        click.echo(f"Verified: {options.merged}")


def _verify(base: Path, adapter: Path, merged: Path, method: Method) -> None:
    from diablo_ds.conversion.verification.verify import verify_merge
    from diablo_ds.model.pretrained import hide_progress_bars

    hide_progress_bars()
    verification = verify_merge(base, adapter, merged, method=method)
    for line in verification.lines:
        click.echo(line)
    verification.check(merged)
