"""Walls to run programs behind."""

from __future__ import annotations

import pytest

from diablo_ds.evaluation.sandbox.walls import WALLS, Walls, find_walls


def _sets() -> list[tuple[str, ...]]:
    """The walls that are tried: all, each that keeps files out by itself, and those of a container
    in which no namespaces can be made."""
    return [tuple(WALLS), ("namespaces",), ("landlock",), ("landlock", "seccomp")]


@pytest.fixture(params=_sets(), ids="+".join)
def walls(request):
    standing = find_walls().names
    names = tuple(name for name in request.param if name in standing)
    if request.param != tuple(WALLS) and names != request.param:
        pytest.skip(f"this machine has not all of {', '.join(request.param)}")
    if not find_walls().keep_files:
        pytest.skip("no wall of this machine keeps files out of reach")
    return Walls(names, True, True)


@pytest.fixture
def all_walls():
    if not find_walls().names:
        pytest.skip("this machine has no walls")
    return find_walls()
