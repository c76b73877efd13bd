"""The parts of the study in order of value: the arms that each compares, given the findings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from benchmarks.quality.arms import Arm, Findings, wanted
from benchmarks.quality.spec import Spec
from benchmarks.quality.study import MIN_STEPS, Study

TITLES: Mapping[str, str] = MappingProxyType(
    {
        "rate": "Learning rate",
        "length": "Length of training",
        "batch": "Batch size",
        "targets": "Targets at equal size",
        "permutation": "Permuted input channels",
        "rounding": "Rounding in bf16",
        "blocks": "Number of blocks",
        "final": "GSM8K",
    }
)
"""By name, in order of value."""
NAMES: Mapping[str, str] = MappingProxyType(
    {"diablo": "DiaBlo", "lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA", "full": "full"}
)
"""Methods as they are printed."""
_BETWEEN = 32
LONGER = 4
"""Times as many steps as the other sweeps have, in the comparison of lengths."""
_BLOCKS = (4, 8, 16, 32, 64, 96, 192)


def rate_arms(study: Study, findings: Findings) -> list[Arm]:
    """DiaBlo at three sizes, LoRA and rsLoRA of equal size, and full fine-tuning.

    Each over at least 5 rates. On a CPU, LoRA and rsLoRA have the first two sizes.
    """
    n, few = study.nearest(study.num_blocks), study.nearest(study.few_blocks)
    order = [("diablo", n), ("lora", n), ("full", 0), ("diablo", few), ("lora", few)]
    order += [("rslora", n), ("diablo", study.nearest(_BETWEEN)), ("rslora", few)]
    if study.device != "cpu":
        order += [(method, study.nearest(_BETWEEN)) for method in ("lora", "rslora")]
    return [
        _arm(study, method, blocks, around=2, top=3, start=study.anchors[method])
        for method, blocks in dict.fromkeys(order)
    ]


def length_arms(study: Study, findings: Findings) -> list[Arm]:
    """DiaBlo and LoRA in trainings as long as the other sweeps', and in longer ones."""
    n = study.nearest(study.num_blocks)
    arms = []
    for method in ("diablo", "lora"):
        start = _best_rate(study, findings, method, n)
        for times in (1, LONGER):
            examples = times * study.amounts.num_examples
            suffix = f"{examples:,} examples"
            arms.append(_arm(study, method, n, start=start, suffix=suffix, num_examples=examples))
    return arms


def batch_arms(study: Study, findings: Findings) -> list[Arm]:
    """DiaBlo, LoRA and full fine-tuning at each batch size, with equal examples seen."""
    n = study.nearest(study.num_blocks)
    arms = []
    for method, blocks in (("diablo", n), ("lora", n), ("full", 0)):
        start = _best_rate(study, findings, method, blocks)
        before = study.amounts.global_batch
        for batch in possible_batches(study):
            # AdamW's best rate grows about like the square root of the batch.
            rate = on_grid(start * math.sqrt(batch / before), study.anchors[method])
            values = {"global_batch": batch, "num_examples": study.amounts.batch_examples}
            arm = _arm(study, method, blocks, start=rate, suffix=f"batch {batch}", **values)
            arms.append(arm)
            tuned = arm.tuned(findings)
            if tuned is not None:
                start, before = tuned.rate, batch
    return arms


def possible_batches(study: Study) -> list[int]:
    """Return the batch sizes that leave enough optimizer steps."""
    return [b for b in study.batches if b * MIN_STEPS <= study.amounts.batch_examples]


def targets_arms(study: Study, findings: Findings) -> list[Arm]:
    """DiaBlo and LoRA on other sets of layers, at the size of the default ones."""
    n = study.nearest(study.num_blocks)
    arms = []
    for targets in study.widths:
        equal = study.equal_size(n, targets)
        for method in ("diablo", "lora"):
            blocks = study.nearest(equal, targets) if method == "diablo" else equal
            start = _best_rate(study, findings, method, n)
            suffix = f"targets {targets}"
            arms.append(_arm(study, method, blocks, start=start, suffix=suffix, targets=targets))
    return arms


def permutation_arms(study: Study, findings: Findings) -> list[Arm]:
    """DiaBlo with and without a fixed random permutation of the input channels."""
    sizes = dict.fromkeys(study.nearest(n) for n in (study.num_blocks, study.few_blocks))
    return [
        _arm(
            study,
            "diablo",
            n,
            start=_best_rate(study, findings, "diablo", n),
            suffix="permuted" if permuted else "",
            permuted=permuted,
        )
        for n in sizes
        for permuted in (False, True)
    ]


def rounding_arms(study: Study, findings: Findings) -> list[Arm]:
    """DiaBlo in bf16 on two delta paths, with and without fp32 masters; and in fp32."""
    n = study.nearest(study.num_blocks)
    start = _best_rate(study, findings, "diablo", n)
    settings: list[tuple[str, dict[str, Any]]] = [("fp32", {"precision": "fp32"})]
    for path in ("fused", "summed"):
        for master in ("fp32", "none"):
            text = f"bf16, {path}, {'fp32 masters' if master == 'fp32' else 'no masters'}"
            values = {"precision": "bf16", "delta_path": path, "master": master}
            settings.append((text, values))
    return [
        _arm(study, "diablo", n, start=start, suffix=suffix, **values)
        for suffix, values in settings
    ]


def blocks_arms(study: Study, findings: Findings) -> list[Arm]:
    """DiaBlo over N, at the best rate; at the ends, its neighbours too."""
    counts = sorted({study.nearest(n) for n in _BLOCKS})
    ends = [counts[0], counts[-1]]
    return [
        _arm(
            study,
            "diablo",
            n,
            start=_rate_between(study, findings, n),
            around=1 if n in ends or n in _known(study, findings) else 0,
        )
        for n in dict.fromkeys([*ends, *counts])
    ]


def final_arms(study: Study, findings: Findings) -> list[Arm]:
    """DiaBlo, LoRA and full fine-tuning on GSM8K."""
    values: dict[str, Any] = {
        "data": "gsm8k",
        "num_examples": study.amounts.final_examples,
        "num_questions": study.amounts.final_questions,
        "max_length": study.final_max_length,
    }
    return [
        _arm(study, method, n, start=_best_rate(study, findings, method, n), **values)
        for method, n in _main_methods(study)
    ]


PARTS: Mapping[str, Callable[[Study, Findings], list[Arm]]] = MappingProxyType(
    {
        "rate": rate_arms,
        "length": length_arms,
        "batch": batch_arms,
        "targets": targets_arms,
        "permutation": permutation_arms,
        "rounding": rounding_arms,
        "blocks": blocks_arms,
        "final": final_arms,
    }
)
"""By name, in order of value: returns the arms of the part."""


def data_of(part: str, study: Study) -> str:
    """Return the kind of data that a part trains on."""
    return "gsm8k" if part == "final" else study.data


def wanted_of(part: str, study: Study, findings: Findings) -> list[Spec]:
    """Return the trainings that a part still needs, the most telling first."""
    return wanted(PARTS[part](study, findings), findings)


def wanted_of_all(parts: Sequence[str], study: Study, findings: Findings) -> list[tuple[str, Spec]]:
    """Return the part and spec of all that parts still need; a shared one is the first part's."""
    found: dict[Spec, str] = {}
    for part in parts:
        for spec in wanted_of(part, study, findings):
            found.setdefault(spec, part)
    return [(part, spec) for spec, part in found.items()]


def on_grid(rate: float, anchor: float) -> float:
    """Return the rate nearest on a logarithmic scale that is the anchor times a power of 2."""
    return anchor * 2.0 ** round(math.log2(rate / anchor))


def describe(spec: Spec) -> str:
    """Return a training in words."""
    words = [method_name(spec.method, spec.num_blocks)]
    if spec.data != "commonsense":
        words.append(spec.data)
    if spec.targets != "default":
        words.append(f"targets {spec.targets}")
    if spec.permuted:
        words.append("permuted")
    if spec.delta_path != "auto" or spec.master != "fp32":
        words += [spec.delta_path, "fp32 masters" if spec.master == "fp32" else "no masters"]
    words += [
        spec.precision,
        f"rate {spec.rate:.3g}",
        f"batch {spec.global_batch}",
        f"{spec.num_examples} examples",
        f"seed {spec.seed}",
    ]
    return ", ".join(words)


def method_name(method: str, num_blocks: str | float) -> str:
    """Return a method and its size in words, as in LoRA of the size of N=64."""
    if method == "full":
        return "full fine-tuning"
    size = num_blocks if isinstance(num_blocks, str) else f"{num_blocks:g}"
    if method == "diablo":
        return f"DiaBlo N={size}"
    if not float(size).is_integer():
        return f"{NAMES[method]} of equal size"
    return f"{NAMES[method]} of the size of N={size}"


def _arm(
    study: Study,
    method: str,
    num_blocks: float,
    *,
    start: float,
    suffix: str = "",
    around: int = 1,
    top: int = 1,
    **values: Any,
) -> Arm:
    name = method_name(method, num_blocks) + (f", {suffix}" if suffix else "")
    seeds = tuple(range(study.amounts.num_seeds))
    spec = study.spec(method, num_blocks, **values)
    return Arm(name, spec, start, seeds, around, top)


def _main_methods(study: Study) -> list[tuple[str, int]]:
    n, few = study.nearest(study.num_blocks), study.nearest(study.few_blocks)
    pairs = [("diablo", n), ("lora", n), ("full", 0), ("diablo", few), ("lora", few)]
    return list(dict.fromkeys(pairs))


def _best_rate(study: Study, findings: Findings, method: str, num_blocks: float) -> float:
    """Return the best rate of the first part, or where it is not known its start."""
    for arm in rate_arms(study, findings):
        if (arm.spec.method, arm.spec.num_blocks) == (
            method,
            f"{num_blocks:g}" if num_blocks else "",
        ):
            tuned = arm.tuned(findings)
            return tuned.rate if tuned else arm.start
    return study.anchors[method]


def _known(study: Study, findings: Findings) -> dict[int, float]:
    """Return DiaBlo's best rates in the first part, by N."""
    return {
        int(arm.spec.num_blocks): tuned.rate
        for arm in rate_arms(study, findings)
        if arm.spec.method == "diablo" and (tuned := arm.tuned(findings))
    }


def _rate_between(study: Study, findings: Findings, num_blocks: int) -> float:
    """Return a rate for N on the line through the best ones of its neighbours, on log scales."""
    known = sorted(_known(study, findings).items())
    if not known:
        return study.anchors["diablo"]
    if len(known) == 1:
        return known[0][1]
    (n1, rate1), (n2, rate2) = min(
        pairwise(known), key=lambda pair: abs(math.log(num_blocks**2 / (pair[0][0] * pair[1][0])))
    )
    slope = math.log(rate2 / rate1) / math.log(n2 / n1)
    return on_grid(rate1 * (num_blocks / n1) ** slope, study.anchors["diablo"])
