"""The plan's memory against committed measurements on GPUs."""

from __future__ import annotations

import pytest

from benchmarks.gpu.models import COMPILED
from benchmarks.gpu.planned import comparisons
from benchmarks.gpu.records import Records
from tests.documents import ROOT

RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize(
    ("file", "card"), [("2026-11-26-gpu-h200.jsonl", "h200"), ("2026-11-27-gpu-h100.jsonl", "h100")]
)
def test_planned_memory_is_within_five_percent_of_what_was_measured(file, card, monkeypatch):
    # The share of the arithmetic needs many plans and is not looked at here.
    monkeypatch.setattr("benchmarks.gpu.planned._share", lambda planned, seconds: 0.0)
    found = list(comparisons(Records(RESULTS / file), card))
    assert any(COMPILED in c.name for c in found)
    for c in found:
        assert c.planned_bytes == pytest.approx(c.measured_bytes, rel=0.05), c.name
