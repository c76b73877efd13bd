"""Which kind of bytes a collective moves, by its method, its size and the mark of an update."""

from __future__ import annotations

import contextlib

import pytest

from diablo_ds.zero import traffic
from diablo_ds.zero.traffic import (
    BASE_GATHERS,
    DELTA_GATHERS,
    DELTA_GRADIENTS,
    NORMS,
    Collective,
    Traffic,
    updating,
)


@pytest.mark.parametrize(
    ("method", "in_update", "num_bytes", "kind"),
    [
        ("all_gather_into_tensor", False, 1000, BASE_GATHERS),
        ("all_gather_into_tensor", True, 1000, DELTA_GATHERS),
        ("all_gather_coalesced", False, 33, BASE_GATHERS),
        ("reduce_scatter_tensor", False, 1000, DELTA_GRADIENTS),
        ("all_reduce", True, 1000, DELTA_GRADIENTS),
        ("all_reduce", True, 4, NORMS),
        ("all_gather", False, 32, NORMS),
        ("broadcast", False, 1000, NORMS),
    ],
)
def test_kinds(method, in_update, num_bytes, kind):
    counted = Traffic()
    for _ in range(2):
        counted.add(method, in_update=in_update, group_size=4, num_bytes=num_bytes)
    assert counted.calls == {Collective(kind, 4): 2}
    assert counted.bytes == {Collective(kind, 4): 2 * num_bytes}


def test_the_mark_lasts_as_long_as_the_update_even_where_it_fails():
    assert not traffic._is_updating
    with contextlib.suppress(KeyError), updating():
        assert traffic._is_updating
        raise KeyError
    assert not traffic._is_updating


def test_the_table_puts_most_bytes_first():
    counted = Traffic()
    counted.add("all_reduce", in_update=True, group_size=2, num_bytes=2_000_000)
    counted.add("all_gather", in_update=False, group_size=8, num_bytes=5_000_000)
    first, second = counted.table().splitlines()
    assert first.split()[:3] == ["base", "gathers", "5.000"]
    assert first.endswith("among 8 ranks")
    assert second.split()[:3] == ["delta", "gradients", "2.000"]


def test_a_rank_alone_sends_nothing():
    counted = Traffic()
    counted.add("all_gather", in_update=False, group_size=1, num_bytes=5_000_000)
    assert counted.by_kind() == {}
    assert counted.table() == "  nothing is sent"
