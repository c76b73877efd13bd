"""Walls to run programs behind."""

from __future__ import annotations

import pytest

from diablo_ds.evaluation.sandbox.walls import WALLS, Walls, find_walls


def _sets() -> list[tuple[str, ...]]:
    """The walls that are tried: all, and each that keeps files out by itself."""
    return [tuple(WALLS), ("namespaces",), ("landlock",)]


@pytest.fixture(params=_sets(), ids="+".join)
def walls(request):
    standing = find_walls().names
    names = tuple(name for name in request.param if name in standing)
    if len(request.param) == 1 and not names:
        pytest.skip(f"this kernel has no {request.param[0]}")
    if not find_walls().keep_files:
        pytest.skip("no wall of this machine keeps files out of reach")
    return Walls(names, True, True)


@pytest.fixture
def all_walls():
    if not find_walls().names:
        pytest.skip("this machine has no walls")
    return find_walls()
