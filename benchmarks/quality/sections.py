"""The sections of the study's report: for each part its statements, its table and its plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from benchmarks.quality.arms import Arm, Findings
from benchmarks.quality.charts import plot_means
from benchmarks.quality.comparing import Mean, loss_difference, mean
from benchmarks.quality.elements import (
    CELLS,
    Page,
    accuracy,
    arm_table,
    cells,
    equal_sizes,
    gap_text,
    join,
    statements,
)
from benchmarks.quality.parts import NAMES, PARTS, rate_arms
from benchmarks.quality.study import Study
from benchmarks.report import table

LOSS = "held-out loss, nats per target token"


def rate_section(study: Study, findings: Findings, page: Page) -> str:
    """Methods of equal size, each at its best rate; and the rule for the rate."""
    arms = rate_arms(study, findings)
    lines = [statements(equal_sizes(arms), findings), arm_table(arms, findings)]
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
        lines += ["### Accuracy at the best rates", accuracy(arms, findings, page, "rate")]
    return join(lines)


def length_section(study: Study, findings: Findings, page: Page) -> str:
    """The best rate and the loss over the number of steps."""
    arms = PARTS["length"](study, findings)
    pairs = [(arms[place], arms[place + 2]) for place in range(2)]
    curves = {arm.name: points for arm in arms if (points := _curve(arm, findings))}
    lines = [statements(pairs, findings), arm_table(arms, findings)]
    if curves:
        path, shown = page.plot("length")
        plot_means(path, {"": curves}, "peak learning rate", LOSS, base=10, least_range=True)
        lines.append(shown)
    return join(lines)


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
            rows.append([str(batch), NAMES[method], *cells(arm, findings), gap_text(gap)])
            if gap is not None:
                gaps.setdefault(NAMES[method], {})[batch] = gap.seeds
                seeds.setdefault(method, {})[batch] = _paired(arm, arms["full"], findings)
        pairs.append((arms["diablo"], arms["lora"]))
    lines = [statements(pairs, findings), _growth(seeds)]
    header = ["batch", "method", *CELLS, "loss - full"]
    lines.append(table(header, rows))
    if gaps:
        path, shown = page.plot("batch")
        plot_means(path, {"": gaps}, "global batch", "loss minus full's, nats", zero=True)
        lines.append(shown)
    return join(lines)


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
    return join([statements(pairs, findings), arm_table(arms, findings)])


def permutation_section(study: Study, findings: Findings, page: Page) -> str:
    """With a permutation against without."""
    arms = PARTS["permutation"](study, findings)
    pairs = list(zip(arms[1::2], arms[::2], strict=True))
    return join([statements(pairs, findings), arm_table(arms, findings)])


def rounding_section(study: Study, findings: Findings, page: Page) -> str:
    """Delta paths and masters in bf16, against fp32."""
    arms = PARTS["rounding"](study, findings)
    fp32, *half = arms
    pairs = [(arm, fp32) for arm in half]
    pairs += [(half[2], half[0]), (half[1], half[0]), (half[3], half[2])]
    return join([statements(pairs, findings), arm_table(arms, findings)])


def blocks_section(study: Study, findings: Findings, page: Page) -> str:
    """The loss over N."""
    arms = sorted(PARTS["blocks"](study, findings), key=lambda arm: int(arm.spec.num_blocks))
    losses: dict[float, Mean] = {
        int(arm.spec.num_blocks): mean(list(tuned.losses.values()))
        for arm in arms
        if (tuned := arm.tuned(findings)) is not None
    }
    lines = [arm_table(arms, findings)]
    if losses:
        path, shown = page.plot("blocks")
        plot_means(path, {"": {"DiaBlo": losses}}, "N, number of blocks", LOSS)
        lines.append(shown)
    return join(lines)


def final_section(study: Study, findings: Findings, page: Page) -> str:
    """GSM8K: loss and, where questions were asked, accuracy."""
    arms = PARTS["final"](study, findings)
    lines = [statements(equal_sizes(arms), findings), arm_table(arms, findings)]
    if study.amounts.final_questions:
        lines.append(accuracy(arms, findings, page, "final"))
    else:
        lines.append("Answers to GSM8K's questions were not generated.")
    return join(lines)


SECTIONS: Mapping[str, Callable[[Study, Findings, Page], str]] = MappingProxyType(
    {
        "rate": rate_section,
        "length": length_section,
        "batch": batch_section,
        "targets": targets_section,
        "permutation": permutation_section,
        "rounding": rounding_section,
        "blocks": blocks_section,
        "final": final_section,
    }
)
"""By part."""


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
