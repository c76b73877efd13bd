"""Every reader, on files made by hand and on nearly valid ones; see `benchmarks.fuzz`."""

from __future__ import annotations

import ctypes
import os
from dataclasses import replace

import pytest

from benchmarks.fuzz import runner
from benchmarks.fuzz.__main__ import all_targets, describe
from benchmarks.fuzz.runner import CRASH, ENDLESS, GOOD, MEMORY, REFUSED, TRACEBACK, fuzz
from benchmarks.fuzz.target import Target
from diablo_ds.errors import UserError

SMALL_BYTES = 1 << 20
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from Python 3.12 on


def _without_large(target):
    made = {n: [c for c in given if len(c) < SMALL_BYTES] for n, given in target.hostile.items()}
    return replace(target, hostile=made)


def test_every_reader_ends_in_a_result_or_an_error_for_the_user(tmp_path):
    (tmp_path / "valid").mkdir()
    (tmp_path / "inputs").mkdir()
    targets = [_without_large(t) for t in all_targets(tmp_path / "valid", large=False)]
    found = fuzz(targets, tmp_path / "inputs", seed=0, inputs=400, keep=tmp_path / "kept")
    problems = [f"{name}: {p}" for name, one in found.items() for p in one.problems]
    assert not problems, "\n".join(problems)
    assert sum(one.counts[GOOD] for one in found.values()) > 20  # some are valid all the same
    assert all(one.num_inputs for one in found.values())
    assert "tracebacks 0, crashes 0, endless 0, out of bounds 0" in describe(found)


def _reader(place):
    content = (place / "a").read_bytes()
    if content == b"refuse":
        raise UserError("a must be valid; got a")
    if content == b"crash":
        ctypes.string_at(1)
    if content == b"fail":
        raise KeyError("a")
    if content == b"grow":
        bytearray(b"x" * (runner.MAX_GROWTH_BYTES + (64 << 20)))
    if content == b"wait":
        while True:
            os.getpid()


def test_each_kind_of_failure_is_noticed_and_the_next_input_is_tried(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "MAX_CPU_S", 1)
    monkeypatch.setattr(runner, "MAX_GROWTH_BYTES", 64 << 20)
    contents = [b"read", b"refuse", b"crash", b"fail", b"grow", b"wait", b"read"]
    target = Target("a reader", {"a": b"read"}, ["a"], _reader, {"a": contents})
    (tmp_path / "inputs").mkdir()
    found = fuzz([target], tmp_path / "inputs", seed=0, inputs=0, keep=tmp_path / "kept")
    assert found["a reader"].counts == {
        **dict.fromkeys((REFUSED, CRASH, TRACEBACK, MEMORY, ENDLESS), 1),
        GOOD: 2,
    }
    assert (tmp_path / "kept" / "3" / "a-reader" / "a").read_bytes() == b"fail"
