"""Deltas that are part of the base weights."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from diablo_ds.adapter.merging import merge, unmerge
from tests.tiny import FAMILIES, build_model
from tests.unit.adapter.models import attach_to


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_model_equals_unmerged(family):
    model = build_model(family)
    for delta in attach_to(model).values():
        torch.nn.init.normal_(delta, std=0.1)
    ids = torch.randint(256, (2, 7))
    expected = model(ids).logits
    merge(model)
    assert_close(model(ids).logits, expected)
    unmerge(model)
    assert_close(model(ids).logits, expected)
