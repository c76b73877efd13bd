"""What the study says in short: how DiaBlo fares, and a rule for its rate."""

from __future__ import annotations

from collections import Counter

from benchmarks.quality.arms import Arm, Findings
from benchmarks.quality.comparing import loss_difference
from benchmarks.quality.elements import equal_sizes
from benchmarks.quality.parts import NAMES, PARTS, TITLES, rate_arms
from benchmarks.quality.rule import Rule, fit_rule
from benchmarks.quality.study import Study

_WORDS = {-1: "lower", 1: "higher", 0: "not shown to differ"}


def summary(study: Study, findings: Findings) -> str:
    """Return how DiaBlo's losses compare with each method's, in one line per part and method."""
    lines = []
    for part in ("rate", "batch", "targets", "final"):
        found: dict[str, Counter[str]] = {}
        for first, second in _pairs(part, PARTS[part](study, findings)):
            gap = loss_difference(first, second, findings)
            if gap is not None:
                words = _WORDS[gap.sign] if gap.seeds.half is not None else "of one seed"
                found.setdefault(NAMES[second.spec.method], Counter())[words] += 1
        for method, counts in found.items():
            text = ", ".join(f"{words} in {n}" for words, n in counts.items())
            name = "full fine-tuning" if method == NAMES["full"] else f"{method} of equal size"
            lines.append(
                f"- {TITLES[part]}: DiaBlo's loss against {name}, {counts.total()} comparisons: "
                f"{text}."
            )
    rule = rate_rule(study, findings)
    if rule is not None:
        lines.append(f"- A rule for DiaBlo's rate: {rule.text()}")
    return "\n".join(lines)


def rate_rule(study: Study, findings: Findings) -> Rule | None:
    """Return the rule through DiaBlo's best rates over N; None where too few are inside."""
    rates: dict[int, float] = {}
    for arm in (*PARTS["blocks"](study, findings), *rate_arms(study, findings)):
        tuned = arm.tuned(findings)
        if arm.spec.method == "diablo" and tuned is not None and tuned.is_inside:
            rates[int(arm.spec.num_blocks)] = tuned.rate
    return fit_rule(dict(sorted(rates.items())))


def _pairs(part: str, arms: list[Arm]) -> list[tuple[Arm, Arm]]:
    """Return DiaBlo's arms of a part with those that differ in the method alone."""
    if part == "targets":
        methods = [[arm for arm in arms if arm.spec.method == m] for m in ("diablo", "lora")]
        return list(zip(*methods, strict=True))
    return [
        (first, second)
        for first, second in equal_sizes(arms)
        if first.spec.global_batch == second.spec.global_batch
    ]
