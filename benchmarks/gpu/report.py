"""The report of what a GPU was measured to do."""

from __future__ import annotations

from benchmarks.gpu.records import Records


def write_gpu_report(records: Records) -> None:
    """Write the report."""
