"""A report of one run or several: one HTML file without scripts that needs no other file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from diablo_ds import __version__
from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import option_name, settings_of
from diablo_ds.config.starts import OF_A_START
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import write_text
from diablo_ds.files.layout import Kind, kind_of
from diablo_ds.reporting.columns import COLUMNS
from diablo_ds.reporting.evaluations import describe_scores, find_evaluations
from diablo_ds.reporting.html import facts, page, section, table, text
from diablo_ds.reporting.record import RunRecord, known_charts, read_given
from diablo_ds.reporting.response import Response, response_of_folder
from diablo_ds.reporting.run_parts import (
    describe_events,
    describe_placement,
    describe_run,
    describe_speed,
)
from diablo_ds.reporting.svg import Line, color_of, dashes_of, line_chart

_NUMBERS = {"heldout_first", "heldout_best", "tokens_per_s", "memory_bytes", "steps"}


def write_report(folders: Sequence[Path], output: Path) -> None:
    """Write a report of runs, sweeps and evaluations.

    Args:
        folders: of runs and sweeps, and of evaluations beyond those that belong to the runs.
        output: the HTML file.

    Raises:
        UserError: if a folder is none of these, no run is named, or the file cannot be one.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"a report must be an .html file; got output={str(output)!r}")
    if not output.absolute().parent.is_dir():
        raise UserError(f"output must lie in a folder that exists; got output={str(output)!r}")
    kinds = {folder: kind_of(folder) for folder in folders}
    given = [folder for folder in folders if kinds[folder] is Kind.EVALUATION]
    runs = read_given([folder for folder in folders if kinds[folder] is not Kind.EVALUATION])
    if not runs:
        raise UserError("a report must be of at least one run; got none")
    responses = [
        (folder, found)
        for folder in folders
        if kinds[folder] is Kind.SWEEP and (found := response_of_folder(folder, runs))
    ]
    evaluations = [e.resolve() for run in runs for e in find_evaluations(run.folder)]
    evaluations += [folder.resolve() for folder in given]
    write_text(output, _page(runs, responses, list(dict.fromkeys(evaluations))))


def _page(
    runs: Sequence[RunRecord],
    responses: Sequence[tuple[Path, Response]],
    evaluations: Sequence[Path],
) -> str:
    is_one = len(runs) == 1
    title = f"Run {runs[0].name}" if is_one else f"{len(runs)} runs compared"
    now = datetime.now().astimezone().isoformat(timespec="minutes")
    sections = [
        section("Results", _results(runs)),
        section("Curves", _curves(runs)),
        *(_response(folder.name, response) for folder, response in responses),
        section("Settings that differ", _differences(runs)),
    ]
    for run in runs:
        parts = {
            "What ran": describe_run(run),
            "Placement": describe_placement(run),
            "Speed": describe_speed(run),
            "Starts, ends and faults": describe_events(run),
        }
        if is_one:
            sections += [section(name, part) for name, part in parts.items()]
        else:
            named = (f"<h3>{name}</h3>\n{part}" for name, part in parts.items() if part)
            sections.append(section(f"Run {run.name}", *named))
    sections += [section(f"Evaluation {e.name}", describe_scores(e)) for e in evaluations]
    return page(title, f"Made by diablo-ds {__version__}, {now}.", sections)


def _results(runs: Sequence[RunRecord]) -> str:
    """Return what each run came to: of one as a list, of several as a table."""
    if len(runs) == 1:
        pairs = [(column.title, text(column.text(runs[0]))) for column in COLUMNS[1:]]
        return facts([(_TITLES.get(title, title), cell) for title, cell in pairs])
    shown = [c for c in COLUMNS if any(c.text(run) for run in runs)]
    rows = [
        [(_swatch(number) if c.name == "name" else "") + text(c.text(run)) for c in shown]
        for number, run in enumerate(runs)
    ]
    numbers = {i for i, column in enumerate(shown) if column.form}
    return table([column.title for column in shown], rows, numbers=numbers)


_TITLES = {
    "N": "blocks of a layer, N",
    "rate": "learning rate",
    "first": "held-out loss before",
    "best": "lowest held-out loss",
    "GB": "peak memory, GB",
}


def _curves(runs: Sequence[RunRecord]) -> str:
    styles = {run.name: number for number, run in enumerate(runs)}
    charts = [
        line_chart(
            chart.title,
            "optimizer step",
            [Line(curve, styles[run.name], has_markers=chart.has_markers) for run, curve in curves],
        )
        for chart, curves in known_charts(runs)
    ]
    if not charts:
        return '<p class="note">No step was taken.</p>'
    legend = _legend([run.name for run in runs]) if len(runs) > 1 else ""
    return legend + _grid(charts)


def _response(name: str, response: Response) -> str:
    lines = [
        Line(points, number, has_markers=True) for number, (_, points) in enumerate(response.lines)
    ]
    title = "held-out loss of the adapter (nats per target token)"
    chart = line_chart(title, response.option, lines, is_log=response.is_log)
    names = [line for line, _ in response.lines]
    legend = _legend(names) if any(names) else ""
    return section(f"Response of sweep {name}", legend, _grid([chart]))


def _differences(runs: Sequence[RunRecord]) -> str:
    """Return the settings in which runs differ, a row for each."""
    known = [run for run in runs if run.run_config is not None]
    rows = []
    for setting in settings_of(RunConfig):
        values = [_shown(getattr(run.run_config, setting.name)) for run in known]
        if setting.name not in OF_A_START and len(set(values)) > 1:
            rows.append([text(option_name(setting.name)), *map(text, values)])
    worlds = [_shown(run.last_start.get("world_size")) for run in known]
    if len(set(worlds)) > 1:
        rows.append(["world size", *map(text, worlds)])
    if len(known) < 2:
        return ""
    if not rows:
        return '<p class="note">None: the runs have the same settings.</p>'
    return table(["setting", *(run.name for run in known)], rows)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        value = ", ".join(map(str, value))
    return "none" if value in (None, "") else str(value)


def _grid(charts: Sequence[str]) -> str:
    return f'<div class="charts">\n{chr(10).join(charts)}\n</div>'


def _legend(names: Sequence[str]) -> str:
    items = (f"<li>{_swatch(number)}{text(name)}</li>" for number, name in enumerate(names))
    return f'<ul class="legend">{"".join(items)}</ul>'


def _swatch(style: int) -> str:
    """Return a piece of a run's line, as it is drawn in the charts."""
    dashes = f' stroke-dasharray="{d}"' if (d := dashes_of(style)) else ""
    line = f'<path d="M0 5H30" stroke="{color_of(style)}" stroke-width="3"{dashes}/>'
    return f'<svg class="swatch" viewBox="0 0 30 10" aria-hidden="true">{line}</svg>'
