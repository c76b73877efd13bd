"""ZeRO-3's gathers on sizes alone; that they equal DeepSpeed's is tested on real ranks."""

from __future__ import annotations

from diablo_ds.planning.gathers import Limits, Visit, simulate

SIZES = {number: 100 for number in range(5)}
LAYERS = [Visit((number,), (number,), True) for number in range(5)]
ROUND = [*LAYERS, *reversed(LAYERS)]
NO_LIMIT = 10**9


def test_what_is_kept_is_gathered_once_and_all_of_it_is_whole():
    gathers = simulate(ROUND, SIZES, (), Limits(0, NO_LIMIT, NO_LIMIT))
    assert set(gathers.counts.values()) == {1}
    assert gathers.most_elements == 500


def test_without_reuse_one_layer_is_whole_and_only_the_last_is_there_for_its_backward():
    gathers = simulate(ROUND, SIZES, (), Limits(0, NO_LIMIT, 1))
    assert [gathers.counts[number] for number in range(5)] == [2, 2, 2, 2, 1]
    assert gathers.most_elements == 100


def test_the_next_layer_is_gathered_ahead_where_there_is_room():
    assert simulate(LAYERS, SIZES, (), Limits(100, NO_LIMIT, 1)).most_elements == 200
    assert simulate(LAYERS, SIZES, (), Limits(250, NO_LIMIT, 1)).most_elements == 400
    assert simulate(LAYERS, SIZES, (), Limits(100, 0, 1)).most_elements == 100


def test_what_is_whole_all_the_time_is_never_gathered():
    gathers = simulate(ROUND, SIZES, (1, 3), Limits(0, NO_LIMIT, 0))
    assert gathers.counts.keys() == {0, 2, 4}
    assert gathers.most_elements == 100
