"""Benchmarks: each measures a figure beside its baseline in the same run, and writes a report."""
