"""Forwards of an evaluation that is told to stop."""

from __future__ import annotations

import pytest
import torch

from diablo_ds.model.batch_rules import BatchLimits
from diablo_ds.model.forwards import Forwards
from diablo_ds.ranks.stopping import StopAgreed
from tests.tiny import build_model


def test_a_lone_rank_stops_ahead_of_the_next_forward():
    requests = []
    forwards = Forwards(build_model().eval(), is_stopping=lambda: bool(requests))
    ids = torch.ones(1, 3, dtype=torch.int64)
    with forwards.together():
        forwards(ids)
        requests.append("SIGINT")
        with pytest.raises(StopAgreed):
            forwards(ids)


def test_limits_in_powers_of_two_are_no_higher():
    limits = BatchLimits(cache_tokens=1023, forward_tokens=1024, logit_rows=1, rows=48)
    assert limits.in_powers_of_two() == BatchLimits(512, 1024, 1, 32)
