"""Is DiaBlo better than LoRA and full fine-tuning, when all are tuned?

    python -m benchmarks.quality --output FOLDER --budget-hours 6
    python -m benchmarks.quality --output FOLDER --dry-run
    python -m benchmarks.quality --output FOLDER --report-only

Each part compares trainings that differ in one thing, with the learning rate that is best for each
of them; what is asked next depends on what was found. Trainings are recorded one by one: the same
command continues where the last one ended. report.md is written at the end of each call.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import click

from benchmarks.quality.parts import PARTS
from benchmarks.quality.records import read_records
from benchmarks.quality.report import write_study_report
from benchmarks.quality.session import Session, check_data
from benchmarks.quality.settings import (
    check_same,
    device_name,
    load_studies,
    new_study,
    parse_amounts,
    with_amounts,
)
from benchmarks.quality.spec import PRECISIONS
from benchmarks.quality.study import Amounts
from benchmarks.questions import CORPORA
from diablo_ds.cli.console import clean_errors, share_cores


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder of records.jsonl, study.json, report.md and its plots.",
)
@click.option(
    "--budget-hours",
    type=click.FloatRange(min=0, min_open=True),
    default=6.0,
    help="How long this call may train. In a new folder, the trainings' size follows from it.",
)
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(list(PARTS)),
    default=tuple(PARTS),
    help="Parts to run.",
)
@click.option("--model", default=None, help="Folder of the base model, or default.  [default]")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default=None,
    help="Of the base and its products. In bf16, small updates of full fine-tuning are lost to the "
    "rounding of weights far from 0, where adapters lose nothing.  [default: fp32]",
)
@click.option(
    "--commonsense",
    type=click.Path(path_type=Path),
    default=CORPORA / "llm-adapters" / "dataset",
    help="Folder with a folder per task, such as boolq/train.json.",
)
@click.option(
    "--gsm8k",
    type=click.Path(path_type=Path),
    default=CORPORA / "gsm8k",
    help="Folder of train.jsonl.gz and test.jsonl.",
)
@click.option(
    "--examples",
    type=click.IntRange(min=1),
    default=None,
    help="Training examples of a training of the sweeps, instead of what fits the budget.",
)
@click.option(
    "--amount",
    "texts",
    multiple=True,
    metavar="NAME=N",
    help="Another amount, as in num_seeds=5: " + ", ".join(f.name for f in fields(Amounts)) + ".",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    help="Trainings at the same time; 0 for what is fastest on this kind of machine.",
)
@click.option("--retry-failed", is_flag=True, help="Try again what has failed.")
@click.option("--dry-run", is_flag=True, help="List what is left, with its time; train nothing.")
@click.option("--report-only", is_flag=True, help="Write the report of what is there.")
def main(
    output: Path,
    budget_hours: float,
    parts: Sequence[str],
    model: str | None,
    precision: str | None,
    commonsense: Path,
    gsm8k: Path,
    examples: int | None,
    texts: Sequence[str],
    workers: int,
    retry_failed: bool,
    dry_run: bool,
    report_only: bool,
) -> None:
    """Compare DiaBlo, LoRA, rsLoRA and full fine-tuning at their best learning rates."""
    share_cores()
    with clean_errors():
        if report_only:
            click.echo(write_study_report(output, read_records(output), load_studies(output)))
            return
        parts = [part for part in PARTS if part in parts]
        fixed = parse_amounts(texts)
        kept = load_studies(output).get(device_name())
        if kept is None:
            study = new_study(model or "default", precision or "fp32")
        else:
            study = check_same(kept, model, precision)
        check_data(study, parts, {"commonsense": commonsense, "gsm8k": gsm8k})
        session = Session(
            output=output,
            study=with_amounts(study, examples, fixed),
            parts=parts,
            budget_s=3600 * budget_hours,
            sources={"commonsense": str(commonsense), "gsm8k": str(gsm8k)},
            workers=workers,
            is_sized=kept is not None or examples is not None,
            fixed=fixed,
        )
        if dry_run:
            click.echo(session.plan())
            return
        code = session.run(retry_failed=retry_failed)
        click.echo(write_study_report(output, read_records(output), load_studies(output)))
        sys.exit(code)


if __name__ == "__main__":
    main()
