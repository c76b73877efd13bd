from __future__ import annotations

import pytest

from diablo_ds.training.step_clock import EVALUATION, SAVING, STEP, StepClock


def test_wall_time_is_divided_and_none_of_it_is_lost():
    times = iter([0.0, 3.0, 10.0, 11.0, 15.0, 18.0, 20.0, 26.0])
    clock = StepClock(lambda: next(times))
    assert clock.finish_step() == {STEP: 3.0}
    with clock.apart(EVALUATION), clock.apart(SAVING):  # 10 to 18, and inside it 11 to 15
        pass
    seconds = clock.finish_step()
    assert seconds == {STEP: 9.0, EVALUATION: 4.0, SAVING: 4.0}
    assert sum(seconds.values()) == 20.0 - 3.0
    assert clock.finish_step() == {STEP: 6.0}


def test_what_fails_is_counted_too():
    times = iter([0.0, 1.0, 3.0, 4.0])
    clock = StepClock(lambda: next(times))
    with pytest.raises(OSError, match="full"), clock.apart(SAVING):
        raise OSError("full")
    assert clock.finish_step() == {STEP: 2.0, SAVING: 2.0}
