"""Soak: break a run again and again, start it by the same command, and compare the end.

    python -m benchmarks.faults --faults 40

A small random model trains under ZeRO-3 on two ranks. Each fault hits at a random moment, or at one
in a given phase of a step. After it every process must be gone within 30 s, the exit code must not
be 0, and the last intact checkpoint must still be intact. The run that was broken many times has to
end with exactly the deltas of an undisturbed one.

Ranks are on this machine, except for "lose a host": there the same run is on two hosts that ssh
reaches, and everything on one of them dies at once.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from benchmarks.breakable_run import SAVE_EVERY, BreakableRun, BrokenOffError, Outcome
from benchmarks.fault_kinds import FAULTS, FILL_DISK, LOSE_HOST, STOP_RANK
from diablo_ds.adapter.storage import load_adapter


def soak(run: BreakableRun, kinds: Sequence[str]) -> tuple[list[Outcome], list[str]]:
    """Break the run once per kind, finish it, and compare it with the undisturbed one.

    Returns:
        The outcomes, and the problems at the end.
    """
    expected = run.undisturbed()
    outcomes: list[Outcome] = []
    for number, kind in enumerate(kinds, 1):
        if run.last_saved() >= run.num_steps - 2 * SAVE_EVERY:
            outcomes[-1].problems += finish(run, expected)
            shutil.rmtree(run.output)
        outcome = run.break_once(
            kind, FAULTS[kind], on_hosts=kind == LOSE_HOST, may_hang=kind == STOP_RANK
        )
        outcomes.append(outcome)
        problems = "; ".join(outcome.problems) or "survived"
        text = f"{number}/{len(kinds)} {kind}, in {outcome.phase}: {problems}"
        click.echo(f"{text}; exit code {outcome.exit_code}, {outcome.seconds_to_end:.1f} s")
    return outcomes, finish(run, expected)


def finish(run: BreakableRun, expected: dict[str, Any]) -> list[str]:
    """Start the run a last time, let it end, and return how its deltas differ."""
    code = run.start(run.output).wait()
    if code:
        return [f"the last start ended with exit code {code}"]
    deltas = load_adapter(run.output / "adapter")[0]
    different = [name for name in expected if not bool((deltas[name] == expected[name]).all())]
    return [f"{len(different)} deltas differ from the undisturbed run's"] if different else []


# --- the report ----------------------------------------------------------------------------------


@click.command()
@click.option("--faults", default=45, show_default=True, help="Faults to make.")
@click.option("--steps", default=60, show_default=True, help="Steps of a run.")
@click.option("--seed", default=0, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Small file system to fill up.")
@click.option("--keep", is_flag=True, help="Keep the folder.")
def main(faults: int, steps: int, seed: int, folder: Path | None, keep: bool) -> None:
    """Break, restart, compare, and write the report."""
    from tests.cluster.ssh import SshHosts

    os.environ["OMP_NUM_THREADS"] = "1"  # ranks with and without a launcher sum in the same order
    where = folder or Path(tempfile.mkdtemp(prefix="diablo-faults-"))
    with SshHosts(Path(tempfile.mkdtemp(prefix="diablo-hosts-"))) as hosts:
        run = BreakableRun(where, steps, seed, hosts)
        try:
            is_good = _soak_and_report(run, faults, has_small_disk=folder is not None)
        except BrokenOffError as error:
            run.end_all()
            raise click.ClickException(str(error)) from None
    if not keep and folder is None:
        shutil.rmtree(where)
    sys.exit(0 if is_good else 1)


def _soak_and_report(run: BreakableRun, faults: int, *, has_small_disk: bool) -> bool:
    """Make the faults and write the report; return whether all were survived."""
    from benchmarks.report import table, write_report

    kinds = [name for name in FAULTS if has_small_disk or name != FILL_DISK]
    order = [kinds[index % len(kinds)] for index in range(faults)]
    run.random.shuffle(order)
    start = time.monotonic()
    outcomes, problems = soak(run, order)
    survived = sum(not outcome.problems for outcome in outcomes)
    rows = []
    for kind in kinds:
        mine = [outcome for outcome in outcomes if outcome.kind == kind]
        if mine:
            seconds = [outcome.seconds_to_end for outcome in mine]
            good = sum(not outcome.problems for outcome in mine)
            codes = ", ".join(map(str, sorted({outcome.exit_code for outcome in mine})))
            rows.append((kind, str(len(mine)), str(good), codes, f"{max(seconds):.1f} s"))
    phases = Counter(o.phase.split(" of ")[0] for o in outcomes if "kill a rank" in o.kind)
    text = (
        f"{len(outcomes)} faults in {time.monotonic() - start:.0f} s on a run of two ranks under "
        f"ZeRO-3; {survived} survived. After the last, the deltas were "
        f"{'exactly those of an undisturbed run' if not problems else '; '.join(problems)}. Each "
        "start continued at the last intact checkpoint, so no step was lost beyond it.\n\n"
        + table(("fault", "made", "survived", "exit codes", "all gone after, at most"), rows)
        + "\n\nPhases in which ranks were killed: "
        + ", ".join(f"{phase} {count}" for phase, count in phases.most_common())
        + "."
    )
    figures = {"outcomes": [asdict(outcome) for outcome in outcomes], "end": problems}
    write_report("faults", "Faults survived", figures, text, "cpu")
    return survived == len(outcomes) and not problems


if __name__ == "__main__":
    main()
