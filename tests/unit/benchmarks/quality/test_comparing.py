import math

import pytest

from benchmarks.quality.arms import Arm, Findings
from benchmarks.quality.comparing import (
    answer_difference,
    loss_difference,
    mean,
    t_quantile,
    verdict,
)
from benchmarks.quality.rule import fit_rule
from tests.unit.benchmarks.quality import made_up

STUDY = made_up.study()


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 10, 29])
def test_the_quantile_is_that_of_students_distribution(degrees):
    # The density's integral between the two quantiles, by Simpson's rule in t = tan(x).
    density = math.gamma((degrees + 1) / 2) / (
        math.sqrt(degrees * math.pi) * math.gamma(degrees / 2)
    )
    top, n = math.atan(t_quantile(degrees)), 2000
    xs = [top * i / n for i in range(n + 1)]
    ys = [
        density * (1 + math.tan(x) ** 2 / degrees) ** (-(degrees + 1) / 2) / math.cos(x) ** 2
        for x in xs
    ]
    integral = top / n / 3 * (ys[0] + 4 * sum(ys[1:-1:2]) + 2 * sum(ys[2:-1:2]) + ys[-1])
    assert 2 * integral == pytest.approx(0.95, abs=1e-6)


def test_an_interval_of_three_values():
    found = mean([1.0, 2.0, 3.0])
    assert found.value == 2.0
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    assert mean([1.0]).half is None


def _arm(method, values, rate=2e-3):
    spec = STUDY.spec(method, 64)
    arm = Arm(method, spec, rate, seeds=(0, 1, 2), around=0)
    return arm, [made_up.record(arm.at(0, s), value=value) for s, value in enumerate(values)]


def test_differences_are_paired_by_seed():
    # Seeds differ far more than methods do, and alike for both.
    diablo, first = _arm("diablo", [1.0, 2.0, 3.0])
    lora, second = _arm("lora", [1.1, 2.1, 3.1001])
    findings = Findings([*first, *second], "cpu")
    gap = loss_difference(diablo, lora, findings)
    assert gap.seeds.value == pytest.approx(-0.1, abs=1e-3)
    assert gap.sign == -1
    assert gap.examples.low <= gap.seeds.value <= gap.examples.high
    assert "DiaBlo has a lower loss than LoRA: -0.1000 [" in verdict(gap, "DiaBlo", "LoRA")
    reverse = loss_difference(lora, diablo, findings)
    assert reverse.sign == 1
    assert "has a higher loss" in verdict(reverse, "LoRA", "DiaBlo")


def test_what_is_within_the_noise_is_no_difference():
    diablo, first = _arm("diablo", [1.0, 2.0, 3.0])
    lora, second = _arm("lora", [1.2, 1.9, 3.0])
    gap = loss_difference(diablo, lora, Findings([*first, *second], "cpu"))
    assert gap.sign == 0
    assert "no difference is shown" in verdict(gap, "DiaBlo", "LoRA")


def test_one_seed_shows_nothing_and_no_seed_is_no_difference():
    diablo, first = _arm("diablo", [1.0])
    lora, second = _arm("lora", [9.0])
    findings = Findings([*first, *second], "cpu")
    gap = loss_difference(diablo, lora, findings)
    assert gap.sign == 0
    assert "one seed shows nothing" in verdict(gap, "DiaBlo", "LoRA")
    other, _ = _arm("rslora", [])
    assert loss_difference(diablo, other, findings) is None


def test_answers_are_compared_question_by_question():
    diablo, first = _arm("diablo", [1.0])
    lora, second = _arm("lora", [1.0])
    first[0]["answers"] = [1] * 40 + [0] * 20
    second[0]["answers"] = [1] * 20 + [0] * 40
    found = answer_difference(diablo, lora, Findings([*first, *second], "cpu"))
    assert found.difference == pytest.approx(1 / 3)
    assert found.test == "exact McNemar"
    assert found.p < 1e-5


def test_a_rule_is_found_where_there_is_one():
    rule = fit_rule({n: 3e-3 * (n / 64) ** 0.5 for n in (4, 16, 64, 192)})
    assert rule.rate == pytest.approx(3e-3)
    assert rule.power == pytest.approx(0.5)
    assert all(abs(value) < 1e-9 for value in rule.residuals.values())
    assert fit_rule({16: 1e-3, 64: 2e-3}) is None
