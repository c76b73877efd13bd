"""What the runs of a sweep came to, from their folders: a table, and a file that keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json, write_json
from diablo_ds.files.layout import SWEEP_FILE, RunFolder
from diablo_ds.files.text_table import text_table
from diablo_ds.training.metrics_file import each_point
from diablo_ds.training.run_numbers import RunNumbers
from diablo_ds.training.standing import DONE

FORMAT = 1
NOT_RUN = "not run"


@dataclass(frozen=True)
class Result:
    """What one run of a sweep came to."""

    name: str
    """Of the run and of its folder in the sweep's."""
    values: Mapping[str, str]
    """By the name of the swept option."""
    status: str
    """`DONE`, perhaps with more words after it, `RUNNING`, `STOPPED`, `NOT_RUN`, or why it
    failed."""
    exit_code: int | None = None
    """Of its last start by this command; None where there was none."""
    steps: int = 0
    """Steps that were taken."""
    num_steps: int | None = None
    final_heldout_loss: float | None = None
    """The last one, in nats per target token."""
    best_heldout_loss: float | None = None
    best_step: int | None = None
    keeps_best: bool = False
    """Whether the run's adapter is that of the best step, not of the last one."""
    tokens_per_s: float | None = None
    """Median over the steps, all ranks together."""
    peak_memory_bytes: int | None = None
    """Of rank 0: allocated on a GPU, resident on a CPU."""

    @property
    def is_done(self) -> bool:
        """Return whether the run came to its end."""
        return self.status.startswith(DONE)

    @property
    def adapter_loss(self) -> float | None:
        """The held-out loss of the run's adapter."""
        return self.best_heldout_loss if self.keeps_best else self.final_heldout_loss


def read_result(
    root: Path,
    name: str,
    values: Mapping[str, str],
    status: str,
    *,
    exit_code: int | None = None,
    keeps_best: bool = False,
) -> Result:
    """Read what a run came to from its folder; what is not there yet is None.

    Args:
        root: the sweep's folder.
        name: of the run.
        values: of the swept options.
        status: how the run stands.
        exit_code: of its last start.
        keeps_best: whether its adapter is that of the best step.
    """
    files = RunFolder(root / name)
    numbers = RunNumbers.of(each_point(files.metrics))
    if status == DONE and files.early_stop():
        status = f"{DONE}, stopped early"
    return Result(
        name=name,
        values=values,
        status=status,
        exit_code=exit_code,
        steps=numbers.steps,
        num_steps=files.num_steps(),
        final_heldout_loss=numbers.last_heldout,
        best_heldout_loss=numbers.best_heldout,
        best_step=numbers.best_step,
        keeps_best=keeps_best,
        tokens_per_s=numbers.tokens_per_s,
        peak_memory_bytes=numbers.peak_memory_bytes,
    )


def best_of(results: Sequence[Result]) -> Result | None:
    """Return the run that is done and whose adapter has the lowest held-out loss, if any."""
    losses = [(r.adapter_loss, r) for r in results if r.is_done and r.adapter_loss is not None]
    return min(losses, key=lambda pair: pair[0], default=(0.0, None))[1]


def sweep_table(root: Path, results: Sequence[Result]) -> str:
    """Return the table of a sweep, and below it its best run."""
    best = best_of(results)
    titles = list(results[0].values)
    header = [
        "",
        *titles,
        "steps",
        "held-out",
        "lowest",
        "at step",
        "tokens/s",
        "peak GB",
        "status",
    ]
    rows = [
        [
            "*" if result is best else "",
            *result.values.values(),
            f"{result.steps}/{result.num_steps}" if result.num_steps else str(result.steps),
            _number(result.final_heldout_loss, ".4f"),
            _number(result.best_heldout_loss, ".4f"),
            _number(result.best_step, "d"),
            _number(result.tokens_per_s, ",.0f"),
            _number(None if (b := result.peak_memory_bytes) is None else b / 1e9, ".2f"),
            result.status,
        ]
        for result in results
    ]
    left = {*range(len(titles) + 1), len(header) - 1}
    lines = [text_table([header, *rows], left=left)]
    if best is not None:
        lines.append(
            f"* lowest held-out loss of an adapter, {best.adapter_loss:.4f}: "
            f"{RunFolder(root / best.name).adapter}"
        )
    return "\n".join(lines)


def write_sweep(root: Path, command: str, results: Sequence[Result]) -> None:
    """Write the record of a sweep to its folder, atomically."""
    best = best_of(results)
    value = {
        "format": FORMAT,
        "command": command,
        "best": None if best is None else best.name,
        "runs": [asdict(result) for result in results],
    }
    write_json(root / SWEEP_FILE, value)


def describe_sweep(root: Path) -> str:
    """Return how a sweep stands, from its folder alone.

    Raises:
        UserError: if its record cannot be read.
    """
    results, command = read_sweep(root)
    return f"Sweep {root}\n{sweep_table(root, results)}\nIts command:\n  {command}"


def read_sweep(root: Path) -> tuple[list[Result], str]:
    """Return what the runs of a sweep came to, as their folders tell now, and its command.

    Raises:
        UserError: if its record cannot be read, or lists no runs.
    """
    recorded, command = read_recorded(root)
    results = [
        read_result(
            root,
            run.name,
            run.values,
            DONE if RunFolder(root / run.name).is_done() else run.status,
            exit_code=run.exit_code,
            keeps_best=run.keeps_best,
        )
        for run in recorded
    ]
    return results, command


def read_recorded(root: Path) -> tuple[list[Result], str]:
    """Return the runs of a sweep as its record has them, without their numbers; and its command.

    Raises:
        UserError: if the record cannot be read, or lists no runs.
    """
    file = root / SWEEP_FILE
    record = read_json(file)
    try:
        results = list(map(_recorded, record["runs"]))
        if len({tuple(result.values) for result in results}) != 1:
            raise TypeError("the runs must be of the same swept options")
        return results, str(record["command"])
    except (TypeError, KeyError, IndexError, AttributeError):
        raise UserError(
            f"a sweep's record must list its runs; got other content in {file}"
        ) from None


def _recorded(run: Mapping[str, Any]) -> Result:
    name = str(run["name"])
    if name in ("", ".", "..") or "/" in name:  # another folder than one of the sweep's
        raise TypeError("a run must be named by a folder in the sweep's")
    return Result(
        name,
        {str(title): str(value) for title, value in run["values"].items()},
        str(run["status"]),
        exit_code=run["exit_code"],
        keeps_best=bool(run["keeps_best"]),
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
