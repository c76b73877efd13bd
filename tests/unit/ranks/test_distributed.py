"""Exchanges of a process that has no one to exchange with, and what ranks have in common."""

from __future__ import annotations

import pytest
import torch

from diablo_ds.errors import UserError
from diablo_ds.ranks import distributed
from diablo_ds.ranks.distributed import first_difference


@pytest.fixture(params=["1", "4"])
def world_size(request, monkeypatch):
    """A launcher may have announced ranks that this process, in a dry run, does not join."""
    monkeypatch.setenv("WORLD_SIZE", request.param)
    # Whatever another test of this process has joined, such as by a library's Trainer.
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: False)
    return int(request.param)


def test_a_process_that_has_joined_no_other_gathers_from_itself(world_size):
    assert distributed.world_size() == world_size
    assert distributed.gather_floats([0.1, 2], "cpu") == [[0.1, 2.0]]
    assert distributed.gather_floats(torch.tensor([0.5, 3.0]), "cpu") == [[0.5, 3.0]]
    assert distributed.gather_values("mine") == ["mine"]
    assert distributed.on_main_process(lambda: "main") == "main"
    assert distributed.on_every_rank(lambda: "every") == "every"
    assert distributed.on_each_host_first(lambda: "host") == "host"


def test_an_error_is_raised_as_it_is_without_other_ranks(world_size):
    distributed.raise_first_error(None)
    with pytest.raises(UserError, match=r"^nvme_path must exist$"):
        distributed.raise_first_error(UserError("nvme_path must exist"))


def test_the_first_fact_that_differs_is_named_with_both_hosts():
    same = ("a", {"torch": "2.9", "device": "cpu"})
    assert first_difference([same, same], "host") == ""
    other = ("b", {"torch": "2.9", "device": "cuda"})
    assert first_difference([same, same, other], "host") == (
        "device must be the same on every host; got cpu on rank 0 (a) and cuda on rank 2 (b)"
    )
