"""Ranks see the devices that were given to their host, whatever DeepSpeed makes of them."""

from __future__ import annotations

import pytest

from diablo_ds.errors import UserError
from diablo_ds.launcher.devices import check_devices, count_devices, devices, put_back

CUDA, HIP, ROCR = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("numbered", "given", "seen"),
    [
        ("0,1", {CUDA: "2,3"}, {CUDA: "2,3"}),
        ("0", {CUDA: "3"}, {CUDA: "3"}),
        ("0,1", {CUDA: "7,2,4"}, {CUDA: "7,2"}),
        ("0,1", {CUDA: "GPU-8932f937, GPU-1f6b"}, {CUDA: "GPU-8932f937, GPU-1f6b"}),
        ("0", {CUDA: "MIG-c2a7b8e0-0"}, {CUDA: "MIG-c2a7b8e0-0"}),
        ("0,1", {CUDA: ""}, {CUDA: ""}),
        ("0,1", {CUDA: "-1"}, {CUDA: "-1"}),
        ("0,1", {}, {CUDA: "0,1"}),
        ("0,1", {HIP: "5,4"}, {HIP: "5,4"}),
        ("0,1", {ROCR: "5,4,3"}, {ROCR: "5,4"}),
        ("0,1", {ROCR: "4,5,6,7", HIP: "3,2"}, {ROCR: "4,5,6,7", HIP: "3,2"}),
        ("2,3", {CUDA: "3,2"}, {CUDA: "3,2"}),  # as plain deepspeed takes them over, sorted
        ("1", {CUDA: "4,5"}, {CUDA: "5"}),  # --include localhost:1
    ],
)
def test_what_was_given_is_put_back(numbered, given, seen):
    environment = {CUDA: numbered, "PATH": "/bin", **{n: v for n, v in given.items() if n != CUDA}}
    found = put_back(environment, given)
    assert {name: found[name] for name in (CUDA, HIP, ROCR) if name in found} == seen
    assert found["PATH"] == "/bin"


def test_a_selection_of_other_devices_is_refused():
    with pytest.raises(UserError, match="must use devices that were given; got 6 from DeepSpeed"):
        put_back({CUDA: "6"}, {CUDA: "4,5"})


@pytest.mark.parametrize("name", [CUDA, HIP, ROCR])
def test_fewer_devices_than_ranks_are_refused_with_both(name):
    for text in ("3", "GPU-1f6b", "3,-1,4"):
        with pytest.raises(UserError, match=f"got 2 ranks on this host, and {name}={text}"):
            check_devices({name: text}, 2)
    with pytest.raises(UserError, match="named once"):
        check_devices({name: "1,1"}, 2)
    for text in ("3,4", "", "-1", "NoDevFiles"):
        check_devices({name: text}, 2)


def test_devices_are_counted_as_cuda_does():
    assert devices("2, GPU-1,-1,5") == ["2", "GPU-1"]
    assert count_devices({}) is None
    assert count_devices({CUDA: "0,1", ROCR: "0"}) == 1
    assert count_devices({CUDA: "NoDevFiles"}) == 0
