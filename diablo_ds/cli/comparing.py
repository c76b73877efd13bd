"""The commands that compare runs, from their folders: `runs` and `report`."""

from __future__ import annotations

from pathlib import Path

import click

from diablo_ds.cli.console import CONTEXT, clean_errors, echo


@click.command(context_settings=CONTEXT)
@click.argument("folder", type=click.Path(path_type=Path), default="runs")
@click.option(
    "--sort",
    default="name",
    show_default=True,
    help="Column or setting to sort by, such as heldout_best, tokens_per_s or learning_rate.",
)
@click.option("--descending", is_flag=True, help="Sort from the largest to the smallest.")
@click.option(
    "--where",
    multiple=True,
    help="Only runs that meet a condition, such as 'heldout_best<1.2', model~llama, state=done or "
    "dropout=0; may be repeated. ~ stands for: holds the text.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every setting.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Draw the curves of these runs over each other into a .png, .svg or .pdf file; of a sweep "
    "its response curve too.",
)
def runs(
    folder: Path,
    sort: str,
    descending: bool,
    where: tuple[str, ...],
    as_json: bool,
    plot: Path | None,
) -> None:
    """Show a table of all runs in a folder and below it (default: runs).

    It has the model, data, blocks, rate, steps, held-out loss before training and at its lowest,
    tokens/s, peak memory and the state of each run, and reads the run folders alone.
    """
    with clean_errors():
        from diablo_ds.reporting import table
        from diablo_ds.reporting.plot import check_plot, plot_runs
        from diablo_ds.reporting.record import find_runs
        from diablo_ds.reporting.response import response_of_folder

        if plot is not None:
            check_plot(plot)
        asked = table.filtered(find_runs(folder), where)
        found = table.sorted_runs(asked, sort, descending=descending)
        if as_json:
            echo(table.runs_json(found))
        else:
            echo(table.runs_table(found) if found else f"No such runs in {folder} or below")
        if plot is not None:
            plot_runs(found, plot, response_of_folder(folder, found))
            click.echo(f"Drawn: {plot}", err=True)


@click.command(context_settings=CONTEXT)
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="The HTML file to write."
)
def report(folders: tuple[Path, ...], output: Path) -> None:
    """Write a report of runs, or of all runs of a sweep, as one HTML file.

    The file needs no network and no scripts, and can be printed. It has what ran, the curves, the
    placement, the speed beside the plan's estimate, restarts and faults, the settings that differ,
    and the scores of evaluations that lie in a run's folder, beside it, or are named too.
    """
    with clean_errors():
        from diablo_ds.reporting.report import write_report

        write_report(folders, output)
        click.echo(f"Report: {output}")
