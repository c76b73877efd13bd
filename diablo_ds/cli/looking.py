"""The commands that look at what a run or a preparation wrote: `status`, `explain`, `inspect`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from diablo_ds.cli.console import CONTEXT, clean_errors, echo
from diablo_ds.cli.watching import show_again


@click.command(context_settings=CONTEXT)
@click.argument("run_folder", type=click.Path(path_type=Path))
@click.option("--watch", is_flag=True, help="Show it again every two seconds while the run lives.")
def status(run_folder: Path, watch: bool) -> None:
    """Show how a run stands, from its folder alone: step, loss, rate, time left, ranks, events.

    It can be asked on any host that sees the folder, while the run lives or after. Of a sweep its
    table is shown, of an evaluation how many answers there are, and how it is continued.
    """
    with clean_errors():
        from diablo_ds.files.layout import RunFolder
        from diablo_ds.launcher.status import describe_status, look
        from diablo_ds.training.metrics_file import RecentPoints

        if watch:
            recent = RecentPoints(RunFolder(run_folder).metrics)
            show_again(lambda: look(run_folder, recent))
        else:
            click.echo(describe_status(run_folder))


@click.command(context_settings=CONTEXT)
@click.argument("folder", type=click.Path(path_type=Path))
def explain(folder: Path) -> None:
    """Show which rank failed first, and its last lines, from a log folder or a run folder.

    Of a run folder the last start is explained. Exit code 0 where all ranks are done, 85 where the
    run was stopped, 2 where its input was wrong, 98 where the master port was taken, else 1.
    """
    with clean_errors():
        from diablo_ds.launcher.explaining import explain_end

        end = explain_end(folder)
    click.echo(end.text, err=True)
    sys.exit(end.exit_code)


@click.command(context_settings=CONTEXT)
@click.argument("path", type=click.Path(path_type=Path))
def inspect(path: Path) -> None:
    """Show what is in the folder of a run, checkpoint, adapter, dataset or evaluation."""
    with clean_errors():
        from diablo_ds.training.inspection import describe

        echo(describe(path))


def renamed(command: click.Command, old: str, new: str) -> click.Command:
    """Return a command under an old name: it says the new one and does the same.

    Args:
        command: the command.
        old: the old name in its group.
        new: the new command, for the note.
    """

    @click.pass_context
    def note_and_run(context: click.Context, /, **arguments: object) -> None:
        click.echo(f"Note: {context.command_path} is now {new}", err=True)
        context.invoke(command, **arguments)

    return click.Command(
        old,
        callback=note_and_run,
        params=command.params,
        help=f"Now {new}.",
        hidden=True,
        context_settings=CONTEXT,
    )
