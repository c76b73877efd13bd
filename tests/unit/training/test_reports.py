"""Rank 0's reports: a write that fails is kept for all ranks, and the last one."""

from __future__ import annotations

import errno

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.training.metrics import Reporter
from diablo_ds.training.reports import Reports

VALUES = {"loss": 1.0, "learning_rate": 1e-3, "tokens_per_s": 10.0}


@pytest.fixture
def reports(tmp_path):
    return Reports(lambda: Reporter(tmp_path, RunConfig(), num_steps=3, start_step=0))


def test_after_a_failed_write_nothing_more_is_written(reports, tmp_path):
    reports.write(lambda reporter: reporter.step(1, VALUES))
    assert reports.error is None
    metrics = tmp_path / "metrics.jsonl"
    written = metrics.read_text()
    metrics.unlink()
    metrics.mkdir()
    reports.write(lambda reporter: reporter.step(2, VALUES))
    assert isinstance(reports.error, OSError)
    assert reports.error.errno == errno.EISDIR
    metrics.rmdir()
    metrics.write_text(written)
    reports.write(lambda reporter: reporter.step(3, VALUES))
    assert metrics.read_text() == written


def test_a_defect_is_not_taken_for_a_failed_write(reports):
    with pytest.raises(TypeError):
        reports.write(lambda reporter: reporter.step(1, {"loss": None}))
