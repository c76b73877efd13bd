"""Layers in several places of a model, and weights of several layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import diablo_ds
from diablo_ds.errors import UserError


class _Shared(nn.Module):
    """A layer that is used twice, and two layers of one weight."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.again = self.first
        self.tied = nn.Linear(8, 8)
        self.other = nn.Linear(8, 8)
        self.other.weight = self.tied.weight

    def forward(self, x):
        return self.other(self.tied(self.again(self.first(x).tanh()).tanh()).tanh())


def test_a_layer_in_two_places_has_one_delta_in_both(tmp_path):
    model, x = _Shared(), torch.randn(3, 8)
    expected = model(x)
    (delta,) = diablo_ds.attach(model, 2, "first").values()
    assert model.first is model.again
    nn.init.normal_(delta)
    said = model(x)
    diablo_ds.save(model, tmp_path / "a")
    assert torch.equal(
        diablo_ds.load(copy.deepcopy(diablo_ds.detach(model)), tmp_path / "a")(x), said
    )
    assert torch.equal(model(x), expected)
    diablo_ds.merge(diablo_ds.load(model, tmp_path / "a"))
    torch.testing.assert_close(model(x), said)
    assert type(model.first) is nn.Linear
    assert model.first is model.again


def test_a_weight_of_two_layers_takes_no_delta_for_good():
    model, x = _Shared(), torch.randn(3, 8)
    expected = model(x)
    diablo_ds.attach(model, 2, "tied")
    with pytest.raises(UserError, match="must be of one layer"):
        diablo_ds.merge(model)
    assert torch.equal(diablo_ds.detach(model)(x), expected)
    assert model.other.weight is model.tied.weight
