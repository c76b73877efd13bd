import dataclasses
import math

import pytest

from benchmarks.quality.arms import MAX_STEPS, MAX_TRIES, Arm, Findings, wanted
from tests.unit.benchmarks.quality import made_up


@pytest.fixture
def arm():
    study = made_up.study()
    return Arm("DiaBlo", study.spec("diablo", 64), 2e-3, seeds=(0, 1, 2), around=2, top=3)


def _search(arm, findings, answer=made_up.record):
    asked = []
    while left := wanted([arm], findings):
        assert left[0] not in asked
        asked.append(left[0])
        findings.add(answer(left[0]))
    return asked


@pytest.mark.parametrize("start", [2e-3 * 2.0**k for k in (-5, -1, 0, 1, 4)])
def test_the_best_rate_ends_inside_with_two_rates_on_each_side(arm, start):
    findings = Findings([], "cpu")
    arm = dataclasses.replace(arm, start=start)
    asked = _search(arm, findings)
    tuned = arm.tuned(findings)
    assert tuned.is_inside
    assert tuned.rate == 4e-3
    places = {round(math.log2(spec.rate / 4e-3)) for spec in asked if spec.seed == 0}
    assert {-2, -1, 0, 1, 2} <= places
    with_seeds = {spec.rate for spec in asked if spec.seed == 2}
    assert with_seeds == {2e-3, 4e-3, 8e-3}
    assert set(tuned.losses) == {0, 1, 2}


def test_other_seeds_come_after_the_search(arm):
    seeds = [spec.seed for spec in _search(arm, Findings([], "cpu"))]
    assert seeds == sorted(seeds, key=bool)
    assert seeds.count(0) == len(seeds) - 6


def test_divergence_counts_as_worst_and_moves_the_search_down(arm):
    findings = Findings([], "cpu")

    def answer(spec):
        return made_up.record(spec, value=math.inf if spec.rate > 6e-4 else 1 + spec.rate)

    _search(arm, findings, answer)
    assert arm.tuned(findings).rate < 6e-4
    # One diverged seed makes a rate worse than any that never diverged.
    best = arm.tuned(findings).rate
    findings.add(made_up.record(dataclasses.replace(arm.spec, rate=best, seed=2), value=math.inf))
    assert arm.tuned(findings).rate != best


def test_a_search_without_an_end_is_ended(arm):
    findings = Findings([], "cpu")
    asked = _search(arm, findings, lambda spec: made_up.record(spec, value=-math.log(spec.rate)))
    tuned = arm.tuned(findings)
    assert not tuned.is_inside
    assert tuned.rate == arm.start * 2.0**MAX_STEPS
    assert len(asked) < 2 * MAX_STEPS + 10


def test_everything_diverges(arm):
    findings = Findings([], "cpu")
    _search(arm, findings, lambda spec: made_up.record(spec, value=math.inf))
    assert arm.tuned(findings) is None


def test_other_seeds_that_prefer_another_rate_extend_the_search(arm):
    findings = Findings([], "cpu")

    def answer(spec):
        place = round(math.log2(spec.rate / arm.start))
        value = {0: [3, 2, 1.5, 1, 2, 3], 1: [1, 0.5, 0.2, 1, 2, 3]}[min(spec.seed, 1)]
        return made_up.record(spec, value=value[min(max(place + 3, 0), 5)] + 0.1 * abs(place))

    asked = _search(dataclasses.replace(arm, around=1), findings, answer)
    tuned = dataclasses.replace(arm, around=1).tuned(findings)
    assert tuned.rate == arm.start / 2
    assert tuned.is_inside
    assert arm.start / 4 in {spec.rate for spec in asked}


def test_what_failed_is_tried_once_more_after_all_others(arm):
    findings = Findings([], "cpu")
    first = wanted([arm], findings)[0]
    findings.add(made_up.failure(first))
    assert wanted([arm], findings)[-1] == first
    findings.add(made_up.failure(first))
    assert MAX_TRIES == 2
    assert first not in wanted([arm], findings)
    assert arm.losses(findings)[0] == {0: math.inf}


def test_what_was_refused_is_not_tried_again_unless_asked_for(arm):
    first = wanted([arm], Findings([], "cpu"))[0]
    records = [made_up.failure(first, is_refused=True)]
    assert first not in wanted([arm], Findings(records, "cpu"))
    assert wanted([arm], Findings(records, "cpu", retried=1))[0] == first


def test_records_of_other_devices_and_sizes_are_kept_apart(arm):
    first = wanted([arm], Findings([], "cpu"))[0]
    other = dataclasses.replace(first, num_examples=first.num_examples + 1)
    records = [made_up.record(first, device="NVIDIA H100"), made_up.record(other)]
    findings = Findings(records, "cpu")
    assert wanted([arm], findings)[0] == first
    assert not arm.losses(findings)
