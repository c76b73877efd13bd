"""The sections of the study's report: for each part its statements, its table and its plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from benchmarks.quality.arms import Arm, Findings
from benchmarks.quality.charts import plot_means, plot_shares
from benchmarks.quality.comparing import (
    Gap,
    Mean,
    answer_difference,
    answer_means,
    loss_difference,
    mean,
    num_trainable,
    verdict,
)
from benchmarks.quality.parts import NAMES, PARTS, rate_arms
from benchmarks.quality.study import Study
from benchmarks.report import table
from diablo_ds.evaluation.statistics import estimate

LOSS = "held-out loss, nats per target token"
_ABSENT = "-"


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


def rate_section(study: Study, findings: Findings, page: Page) -> str:
    """Methods of equal size, each at its best rate; and the rule for the rate."""
    arms = rate_arms(study, findings)
    lines = [_statements(equal_sizes(arms), findings), _arm_table(arms, findings)]
    sizes = dict.fromkeys(arm.spec.num_blocks for arm in arms if arm.spec.num_blocks)
    full = [arm for arm in arms if arm.spec.method == "full"]
    panels: dict[str, dict[str, dict[float, Mean]]] = {}
    for n in sizes:
        own = [arm for arm in arms if arm.spec.num_blocks == n]
        curves = {NAMES[arm.spec.method]: _curve(arm, findings) for arm in (*own, *full)}
        curves = {name: points for name, points in curves.items() if points}
        if curves:
            panels[f"size of N={n}"] = curves
    if panels:
        path, shown = page.plot("rate")
        plot_means(path, panels, "peak learning rate", LOSS, base=10, least_range=True)
        lines.append(shown)
    if any(arm.spec.num_questions for arm in arms):
        lines += ["### Accuracy at the best rates", _accuracy(arms, findings, page, "rate")]
    return _join(lines)


def batch_section(study: Study, findings: Findings, page: Page) -> str:
    """The gap to full fine-tuning as a function of the batch."""
    by_batch: dict[int, dict[str, Arm]] = {}
    for arm in PARTS["batch"](study, findings):
        by_batch.setdefault(arm.spec.global_batch, {})[arm.spec.method] = arm
    rows, gaps = [], dict[str, dict[float, Mean]]()
    seeds: dict[str, dict[int, dict[int, float]]] = {}
    pairs = []
    for batch, arms in by_batch.items():
        for method, arm in arms.items():
            gap = None if method == "full" else loss_difference(arm, arms["full"], findings)
            rows.append([str(batch), NAMES[method], *_cells(arm, findings), _text(gap)])
            if gap is not None:
                gaps.setdefault(NAMES[method], {})[batch] = gap.seeds
                seeds.setdefault(method, {})[batch] = _paired(arm, arms["full"], findings)
        pairs.append((arms["diablo"], arms["lora"]))
    lines = [_statements(pairs, findings), _growth(seeds)]
    header = ["batch", "method", *_CELLS, "loss - full"]
    lines.append(table(header, rows))
    if gaps:
        path, shown = page.plot("batch")
        plot_means(path, {"": gaps}, "global batch", "loss minus full's, nats", zero=True)
        lines.append(shown)
    return _join(lines)


def _growth(seeds: Mapping[str, Mapping[int, Mapping[int, float]]]) -> str:
    """Say how gaps to full fine-tuning change from the smallest batch to the largest."""
    lines, changes = [], dict[str, dict[int, float]]()
    for method, gaps in seeds.items():
        first, last = min(gaps), max(gaps)
        common = sorted(gaps[first].keys() & gaps[last].keys())
        if first == last or not common:
            continue
        changes[method] = {seed: gaps[last][seed] - gaps[first][seed] for seed in common}
        change = mean(list(changes[method].values()))
        lines.append(
            f"- {NAMES[method]}'s gap to full fine-tuning changes by {change.text(signed=True)} "
            f"from batch {first} to batch {last}."
        )
    if len(changes) == 2:
        lora, diablo = changes["lora"], changes["diablo"]
        more = [lora[seed] - diablo[seed] for seed in sorted(lora.keys() & diablo.keys())]
        if more:
            text = mean(more).text(signed=True)
            lines.append(f"- LoRA's gap grows by {text} more than DiaBlo's does.")
    return "\n".join(lines)


def targets_section(study: Study, findings: Findings, page: Page) -> str:
    """Sets of target layers at equal size."""
    arms = PARTS["targets"](study, findings)
    by_method: dict[str, list[Arm]] = {}
    for arm in arms:
        by_method.setdefault(arm.spec.method, []).append(arm)
    pairs = [(arm, own[0]) for own in by_method.values() for arm in own[1:]]
    pairs += list(zip(*by_method.values(), strict=True))
    return _join([_statements(pairs, findings), _arm_table(arms, findings)])


def permutation_section(study: Study, findings: Findings, page: Page) -> str:
    """With a permutation against without."""
    arms = PARTS["permutation"](study, findings)
    pairs = list(zip(arms[1::2], arms[::2], strict=True))
    return _join([_statements(pairs, findings), _arm_table(arms, findings)])


def rounding_section(study: Study, findings: Findings, page: Page) -> str:
    """Delta paths and masters in bf16, against fp32."""
    arms = PARTS["rounding"](study, findings)
    fp32, *half = arms
    pairs = [(arm, fp32) for arm in half]
    pairs += [(half[2], half[0]), (half[1], half[0]), (half[3], half[2])]
    return _join([_statements(pairs, findings), _arm_table(arms, findings)])


def blocks_section(study: Study, findings: Findings, page: Page) -> str:
    """The loss over N."""
    arms = sorted(PARTS["blocks"](study, findings), key=lambda arm: int(arm.spec.num_blocks))
    losses: dict[float, Mean] = {
        int(arm.spec.num_blocks): mean(list(tuned.losses.values()))
        for arm in arms
        if (tuned := arm.tuned(findings)) is not None
    }
    lines = [_arm_table(arms, findings)]
    if losses:
        path, shown = page.plot("blocks")
        plot_means(path, {"": {"DiaBlo": losses}}, "N, number of blocks", LOSS)
        lines.append(shown)
    return _join(lines)


def final_section(study: Study, findings: Findings, page: Page) -> str:
    """GSM8K: loss and, where questions were asked, accuracy."""
    arms = PARTS["final"](study, findings)
    lines = [_statements(equal_sizes(arms), findings), _arm_table(arms, findings)]
    if study.amounts.final_questions:
        lines.append(_accuracy(arms, findings, page, "final"))
    else:
        lines.append("Answers to GSM8K's questions were not generated.")
    return _join(lines)


SECTIONS: Mapping[str, Callable[[Study, Findings, Page], str]] = MappingProxyType(
    {
        "rate": rate_section,
        "batch": batch_section,
        "targets": targets_section,
        "permutation": permutation_section,
        "rounding": rounding_section,
        "blocks": blocks_section,
        "final": final_section,
    }
)
"""By part."""


_CELLS = ("trained parameters", "best rate", "rates tried", "seeds", "loss")


def equal_sizes(arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """Return DiaBlo's arms with those that they are compared with: of equal size, and full."""
    return [
        (arm, other)
        for arm in arms
        if arm.spec.method == "diablo"
        for other in arms
        if other.spec.method != "diablo" and other.spec.num_blocks in (arm.spec.num_blocks, "")
    ]


def _statements(pairs: Sequence[tuple[Arm, Arm]], findings: Findings) -> str:
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


def _arm_table(arms: Sequence[Arm], findings: Findings) -> str:
    rows = [[arm.name, *_cells(arm, findings)] for arm in arms]
    known = next((record for arm in arms for record in arm.records(findings)), None)
    if known is not None and known.get("heldout_before") is not None:
        rows.append(
            ["before training", "0", _ABSENT, _ABSENT, _ABSENT, f"{known['heldout_before']:.4f}"]
        )
    return table(["", *_CELLS], rows)


def _cells(arm: Arm, findings: Findings) -> list[str]:
    """Return the cells of `_CELLS`."""
    losses = arm.losses(findings)
    tuned = arm.tuned(findings)
    num_bad = sum(math.isinf(own[arm.seeds[0]]) for own in losses.values())
    tried = f"{len(losses)}" + (f", {num_bad} diverged or failed" if num_bad else "")
    if tuned is None:
        return [_ABSENT, _ABSENT, tried, "0", _ABSENT]
    edge = "" if tuned.is_inside or not arm.around else ", at the edge"
    return [
        f"{num_trainable(arm, findings):,}",
        f"{tuned.rate:.3g}{edge}",
        tried,
        str(len(tuned.losses)),
        mean(list(tuned.losses.values())).text(),
    ]


def _curve(arm: Arm, findings: Findings) -> dict[float, Mean]:
    """Return the mean loss by rate, of rates that did not diverge."""
    return {
        arm.start * 2.0**place: mean(list(losses.values()))
        for place, losses in arm.losses(findings).items()
        if not math.isinf(sum(losses.values()))
    }


def _paired(first: Arm, second: Arm, findings: Findings) -> dict[int, float]:
    """Return by how much the first arm's loss is higher, by seed."""
    tuned = first.tuned(findings), second.tuned(findings)
    if tuned[0] is None or tuned[1] is None:
        return {}
    own, others = tuned[0].losses, tuned[1].losses
    return {seed: own[seed] - others[seed] for seed in sorted(own.keys() & others.keys())}


def _text(gap: Gap | None) -> str:
    return _ABSENT if gap is None else gap.text()


def _accuracy(arms: Sequence[Arm], findings: Findings, page: Page, name: str) -> str:
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
    return _join(["\n".join(lines), table(header, rows), shown])


def _join(texts: Sequence[str]) -> str:
    return "\n\n".join(text for text in texts if text)
