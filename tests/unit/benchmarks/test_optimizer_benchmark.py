from __future__ import annotations

import pytest
import torch

from benchmarks.optimizer import measure, updates


def test_every_kind_updates_alike_and_is_measured_in_each_round():
    torch.manual_seed(0)
    found = measure(64, "cpu", 2, with_deepspeed=False)
    assert [len(times) for times in found.values()] == [2, 2, 2]
    flats = []
    for update in updates(64, "cpu", with_deepspeed=False).values():
        (flat,) = update.__self__.param_groups[0]["params"]
        flat.data, flat.grad = torch.ones(64), torch.linspace(-1, 1, 64)
        update()
        flats.append(flat.detach())
    for flat in flats[1:]:
        assert flat.tolist() == pytest.approx(flats[0].tolist(), rel=1e-6)
