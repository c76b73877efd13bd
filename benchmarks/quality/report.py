"""The study's report: from records alone, so that it can be written again at any time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import fsum
from pathlib import Path

from benchmarks.quality.arms import Findings
from benchmarks.quality.elements import Page
from benchmarks.quality.parts import PARTS, TITLES, describe, possible_batches, wanted_of_all
from benchmarks.quality.progress import duration
from benchmarks.quality.records import Record
from benchmarks.quality.sections import SECTIONS
from benchmarks.quality.sizes import Estimates
from benchmarks.quality.spec import Spec
from benchmarks.quality.study import MIN_STEPS, Study
from benchmarks.quality.summary import summary
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import write_text

FILE = "report.md"
_READING = """\
**How to read it.** Every training is of this repository's own step, loss, data and order of data on
both sides; only what is trained differs. Each method is at the rate that is best for it, searched
in steps of a factor of 2 until the best lies between worse ones; rates are compared by the held-out
loss, which all methods are then also reported by, so that all of them gain alike from the choice.
Losses are in nats per target token. Intervals are of 95 %: over seeds by Student's t, paired by
seed for differences, where a seed gives both sides the same examples in the same order; over
questions for accuracies. A training that diverged counts as worse than any other. LoRA and its
kin have the rank whose size is nearest to that of DiaBlo's N blocks on the same layers. Rows of a
table may have different numbers of seeds: the sentences above it compare the seeds that both have.
There is no correction for the number of comparisons: of 20 differences that are none, one is
expected to look like one."""


def write_study_report(
    folder: Path, records: Sequence[Record], studies: Mapping[str, Study]
) -> Path:
    """Write report.md and its plots, and return its path.

    Args:
        folder: of the study.
        records: all of them.
        studies: by device.

    Raises:
        UserError: if there is nothing to report.
    """
    if not studies:
        raise UserError(f"a report needs a study that was started; got none in {folder}")
    pages = [
        _device_page(study, records, folder, "" if len(studies) == 1 else f"{_slug(device)}-")
        for device, study in studies.items()
    ]
    title = "# DiaBlo, LoRA and full fine-tuning, each at its best learning rate"
    path = folder / FILE
    write_text(path, "\n\n".join([title, *pages, _READING]) + "\n")
    return path


def _device_page(study: Study, records: Sequence[Record], folder: Path, prefix: str) -> str:
    findings = Findings(records, study.device)
    page = Page(folder, prefix)
    short = summary(study, findings)
    lines = [_where(study, findings), f"## In short\n\n{short or 'Nothing can be compared yet.'}"]
    shown = set[Spec]()
    for part, section in SECTIONS.items():
        arms = {arm.spec: arm for arm in PARTS[part](study, findings)}
        has_any = any(arms[spec].losses(findings) for spec in arms.keys() - shown)
        shown |= arms.keys()
        text = section(study, findings, page) if has_any else "Not run."
        lines.append(f"## {TITLES[part]}\n\n{text}")
    lines += [_not_run(study, findings), _failures(findings)]
    return "\n\n".join(line for line in lines if line)


def _where(study: Study, findings: Findings) -> str:
    """Say what was trained, where, and with what."""
    records = list(findings.records.values())
    amounts = study.amounts
    hardware = _listed(r.get("machine", {}).get("hardware", "") for r in records)
    commits = _listed(str(r.get("commit") or "")[:12] for r in records)
    dates = sorted(str(r["date"])[:10] for r in records if r.get("date"))
    when = f"{dates[0]} to {dates[-1]}" if dates else "no date"
    versions = _listed(
        ", ".join(f"{name} {number}" for name, number in r.get("versions", {}).items())
        for r in records
    )
    digests = Counter(
        (r["spec"]["data"], r["data"]["digest"]) for r in records if r.get("data", {}).get("digest")
    )
    seconds = fsum(r["seconds"]["total"] for r in records)
    lines = [
        f"Base model: {study.model}; {study.precision}. {when}; {hardware or study.device}; "
        f"{versions}; commit {commits or 'unknown'}.",
        f"{len(records)} trainings, {duration(seconds)} in all. A training of the sweeps sees "
        f"{amounts.num_examples:,} examples in batches of {amounts.global_batch}, one of the "
        f"comparison of batch sizes {amounts.batch_examples:,}, one on GSM8K "
        f"{amounts.final_examples:,}. Best rates have {amounts.num_seeds} seeds; "
        f"{amounts.num_held_out:,} held-out examples.",
    ]
    kinds = Counter(kind for kind, _ in digests)
    lines += [
        f"**The data changed while the study ran** ({kind}, {n} versions): its losses do not "
        "belong together."
        for kind, n in kinds.items()
        if n > 1
    ]
    return "\n\n".join(lines)


def _not_run(study: Study, findings: Findings) -> str:
    """List what is missing, by part."""
    left = wanted_of_all(list(PARTS), study, findings)
    estimates = Estimates(findings)
    lines = []
    for part in PARTS:
        own = [spec for name, spec in left if name == part]
        if own:
            seconds = fsum(estimates.seconds(spec) for spec in own)
            lines.append(
                f"- {TITLES[part]}: {len(own)} trainings, about {duration(seconds)}; the next one: "
                f"{describe(own[0])}."
            )
    for batch in study.batches:
        if batch not in possible_batches(study):
            lines.append(
                f"- Batch {batch}: {study.amounts.batch_examples:,} examples make fewer than "
                f"{MIN_STEPS} steps of it."
            )
    if not study.amounts.final_questions:
        lines.append("- GSM8K's questions: no answers were generated.")
    return "## Not run\n\n" + ("\n".join(lines) if lines else "Everything was run.")


def _failures(findings: Findings) -> str:
    diverged = [spec for spec, r in findings.records.items() if r["status"] == "diverged"]
    failed = [spec for spec in findings.failures if spec not in findings.records]
    lines = []
    if diverged:
        lines.append(f"{len(diverged)} trainings diverged, at these rates:")
        lines += sorted(f"- {describe(spec)}" for spec in diverged)
    if failed:
        lines.append(f"\n{len(failed)} trainings failed:")
        lines += [f"- {describe(spec)}" for spec in failed]
    return "## Diverged and failed\n\n" + "\n".join(lines) if lines else ""


def _listed(texts: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(text for text in texts if text))


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()
