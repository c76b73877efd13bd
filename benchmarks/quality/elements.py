"""What the sections of the study's report are made of: statements, tables, accuracies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality.arms import Arm, Findings
from benchmarks.quality.charts import plot_shares
from benchmarks.quality.comparing import (
    Gap,
    answer_difference,
    answer_means,
    loss_difference,
    mean,
    num_trainable,
    verdict,
)
from benchmarks.report import table
from diablo_ds.evaluation.statistics import estimate

ABSENT = "-"

CELLS = ("trained parameters", "best rate", "rates tried", "seeds", "loss")


class Page:
    """Where a section goes.

    Args:
        folder: of the plots.
        prefix: of their names.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        self.folder, self._prefix = folder, prefix

    def plot(self, name: str) -> tuple[Path, str]:
        """Return a plot's path and the line that shows it."""
        file = f"{self._prefix}{name}.png"
        return self.folder / file, f"![{name}]({file})"


def equal_sizes(arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """Return DiaBlo's arms with those that they are compared with: of equal size, and full."""
    return [
        (arm, other)
        for arm in arms
        if arm.spec.method == "diablo"
        for other in arms
        if other.spec.method != "diablo" and other.spec.num_blocks in (arm.spec.num_blocks, "")
    ]


def statements(pairs: Sequence[tuple[Arm, Arm]], findings: Findings) -> str:
    """Say what each pair shows; of pairs that were not run, nothing."""
    return "\n".join(
        f"- {verdict(gap, first.name, second.name)}{_unfinished((first, second), findings)}"
        for first, second in pairs
        if (gap := loss_difference(first, second, findings)) is not None
    )


def _unfinished(arms: Sequence[Arm], findings: Findings) -> str:
    """Name the arms whose best rate may still be beaten by one that was not tried."""
    names = [
        arm.name
        for arm in arms
        if arm.around and (tuned := arm.tuned(findings)) is not None and not tuned.is_inside
    ]
    return f" Not tuned yet: {', '.join(names)}." if names else ""


def arm_table(arms: Sequence[Arm], findings: Findings) -> str:
    """Return a row per arm at its best rate, and one of the loss before training."""
    rows = [[arm.name, *cells(arm, findings)] for arm in arms]
    known = next((record for arm in arms for record in arm.records(findings)), None)
    if known is not None and known.get("heldout_before") is not None:
        rows.append(
            ["before training", "0", ABSENT, ABSENT, ABSENT, f"{known['heldout_before']:.4f}"]
        )
    return table(["", *CELLS], rows)


def cells(arm: Arm, findings: Findings) -> list[str]:
    """Return the cells of `CELLS`."""
    losses = arm.losses(findings)
    tuned = arm.tuned(findings)
    num_bad = sum(math.isinf(own[arm.seeds[0]]) for own in losses.values())
    tried = f"{len(losses)}" + (f", {num_bad} diverged or failed" if num_bad else "")
    if tuned is None:
        return [ABSENT, ABSENT, tried, "0", ABSENT]
    edge = "" if tuned.is_inside or not arm.around else ", at the edge"
    return [
        f"{num_trainable(arm, findings):,}",
        f"{tuned.rate:.3g}{edge}",
        tried,
        str(len(tuned.losses)),
        mean(list(tuned.losses.values())).text(),
    ]


def gap_text(gap: Gap | None) -> str:
    """Return a difference of losses for a table."""
    return ABSENT if gap is None else gap.text()


def accuracy(arms: Sequence[Arm], findings: Findings, page: Page, name: str) -> str:
    """Return statements, table and plot of the accuracies at the best rates."""
    rows, shares = [], dict[str, tuple[float, float, float]]()
    for arm in arms:
        num_seeds, answers = answer_means(arm, findings)
        if not answers:
            continue
        found = estimate(answers)
        shares[arm.name] = (found.score, *found.interval)
        low, high = found.interval
        scores = f"{found.score:.1%} [{low:.1%}, {high:.1%}]"
        rows.append([arm.name, str(num_seeds), scores, str(found.n)])
    if not rows:
        return "Not run."
    lines = []
    for first, second in equal_sizes(arms):
        difference = answer_difference(first, second, findings)
        if difference is not None:
            low, high = difference.interval
            lines.append(
                f"- {first.name} minus {second.name}: {100 * difference.difference:+.1f} points "
                f"[{100 * low:+.1f}, {100 * high:+.1f}], p = {difference.p:.3f} "
                f"({difference.test})."
            )
    path, shown = page.plot(f"{name}-accuracy")
    plot_shares(path, shares, "accuracy")
    header = ["", "seeds", "accuracy, 95 % over questions", "questions"]
    return join(["\n".join(lines), table(header, rows), shown])


def join(texts: Sequence[str]) -> str:
    """Return texts as paragraphs, without the empty ones."""
    return "\n\n".join(text for text in texts if text)
