"""Programs to run behind walls."""

from __future__ import annotations

from diablo_ds.evaluation.sandbox.program import Limits, Program
from diablo_ds.evaluation.sandbox.running import check_program

LIMITS = Limits(wall_s=60.0)
TESTS = "assert answer(2) == 4\nassert answer(3) == 9\n"
RIGHT = "def answer(x):\n    return x * x\n"


def run(source, walls, tests=TESTS, limits=LIMITS, **more):
    return check_program(Program(source, tests, **more), walls, limits)
