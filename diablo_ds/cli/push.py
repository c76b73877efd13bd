"""The command `push`: an adapter to the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from diablo_ds.cli.console import CONTEXT, clean_errors, echo
from diablo_ds.cli.options import GroupedCommand, from_options, options_of
from diablo_ds.config.setting import REQUIRED, check_settings, setting


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Options of `diablo-ds push`.

    Raises:
        UserError: if a value is illegal.
    """

    repo: str = setting(REQUIRED, "Repository on the hub: owner/name.", "run")
    base_model: str = setting(
        "",
        "Name of the base model on the hub.",
        "model",
        shown_default="the one that the adapter records",
    )
    public: bool = setting(False, "Make a new repository public, not private.", "run")
    licence: str = setting(
        "",
        "Identifier of the licence on the hub, such as apache-2.0.",
        "run",
        shown_default="the model card's",
    )
    message: str = setting("Upload of a DiaBlo adapter", "The commit's message.", "run")
    dry_run: bool = setting(False, "Show files and settings, and upload nothing.", "start")

    def __post_init__(self) -> None:
        check_settings(self)


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@click.argument("adapter", type=click.Path(path_type=Path))
@options_of(PushOptions)
def push(adapter: Path, **values: Any) -> None:
    """Upload an adapter with its model card to the Hugging Face hub.

    ADAPTER is an adapter's folder, a checkpoint, or the folder of a run that is done.
    """
    with clean_errors():
        from diablo_ds.conversion import publishing

        options = from_options(PushOptions, values)
        upload = publishing.plan_upload(
            adapter,
            options.repo,
            base_model=options.base_model,
            private=not options.public,
            licence=options.licence,
        )
        echo(upload.text())
        if options.dry_run:
            echo("Dry run: nothing was uploaded")
        else:
            echo(f"Done: {publishing.push(upload, options.message)}")
