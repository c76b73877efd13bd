"""Clusters as numbers: memory, arithmetic and links of a rank, with what is assumed of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from diablo_ds.config.setting import check_settings, setting
from diablo_ds.errors import UserError

GB = 1e9
MOST_RANKS = 1024
"""Of the clusters that a plan compares."""


@dataclass(frozen=True)
class Device:
    """A GPU model, by its vendor's figures."""

    memory_gb: float
    tflops: float
    """Dense 16-bit matrix products, in 10^12 operations per second."""
    memory_gbs: float
    """Of its own memory, in GB/s."""
    inside_gbs: float
    """To the other GPUs of a node, in one direction, in GB/s."""
    between_gbs: float
    """A node's network in the usual build of eight GPUs, in one direction, in GB/s."""
    has_bf16: bool = True
    """Whether it has bf16 instructions."""


DEVICES = {
    "v100": Device(32, 125, 900, 150, 12.5, has_bf16=False),
    "a10g": Device(24, 70, 600, 16, 12.5),
    "l40s": Device(48, 362, 864, 32, 50),
    "rtx4090": Device(24, 165, 1008, 16, 3),
    "a100-40": Device(40, 312, 1555, 300, 100),
    "a100": Device(80, 312, 2039, 300, 200),
    "h100": Device(80, 989, 3350, 450, 400),
    "h200": Device(141, 989, 4800, 450, 400),
    "b200": Device(180, 2250, 8000, 900, 400),
    "mi300x": Device(192, 1307, 5300, 448, 400),
}
"""By the name that `--gpu` takes."""
DEFAULT_DEVICE = "h100"
"""Of a plan that names none, and for cards that are not listed."""
DEFAULT_RESERVE_GB = 2.0
"""Memory of a GPU for CUDA, NCCL and the allocator's gaps."""
_OTHER_BUILDS = ("pcie", "nvl", "gb200")
"""Words in names of cards whose peak is not that of the GPU's usual build."""


def card_key(name: str) -> str:
    """Return the key of a card in `DEVICES` by the name that its driver gives, or nothing."""
    name = name.lower().replace(" ", "")
    return next((key for key in DEVICES if key.split("-")[0] in name), "")


def peak_flops(name: str) -> float | None:
    """Return a card's peak of dense 16-bit products in FLOP/s by its vendor, where known.

    Args:
        name: that its driver gives.
    """
    key = card_key(name)
    if any(word in name.lower() for word in _OTHER_BUILDS):
        return None
    return DEVICES[key].tflops * 1e12 if key else None


def find_device(name: str, memory_bytes: float) -> Device:
    """Return the figures of a GPU by the name that its driver gives, or those of the default.

    Args:
        name: such as "NVIDIA A100-SXM4-40GB".
        memory_bytes: its memory, which tells apart cards of one name.
    """
    card = (card_key(name) or DEFAULT_DEVICE).split("-")[0]
    builds = [device for key, device in DEVICES.items() if key.split("-")[0] == card]
    return min(builds, key=lambda device: abs(device.memory_gb * GB - memory_bytes))


def _share(default: float, help: str) -> Any:
    return setting(default, help, "hardware", above=0, maximum=1)


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Shares of the vendors' figures that a step is taken to reach.

    The first was measured on one H200 (benchmarks/results), the others were not.
    """

    compute_share: float = _share(0.55, "Share of the peak that matrix products reach.")
    """Of the peak of matrix products, by a full step with compiled layers: 0.54 to 0.60 for shapes
    of 8B and 70B; 0.43 to 0.53 without compilation."""
    memory_share: float = _share(0.7, "Share of the memory's bandwidth that is reached.")
    """Of the memory's bandwidth, for elementwise work and the optimizer."""
    link_share: float = _share(0.7, "Share of a link's bandwidth that is reached.")
    """Of a link's bandwidth, for large collectives."""
    latency_us: float = 15.0
    """Of one collective in a node, in microseconds; doubled across nodes for each tenfold."""
    fp32_share: float = 1 / 16
    """Speed of fp32 products in proportion to 16-bit ones, without TF32."""
    host_gbs: float = 25.0
    """From the host's memory to one GPU, in GB/s; for offload."""
    host_adam_gbs: float = 20.0
    """Memory bandwidth that AdamW gets on the host for one rank, in GB/s; for offload."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class ClusterSize:
    """Nodes and their GPUs, one rank per GPU; bandwidths in bytes per second, one direction."""

    num_nodes: int
    ranks_per_node: int
    memory_bytes: float
    """Of one GPU."""
    reserved_bytes: float
    """Of that, what CUDA, NCCL and the allocator's gaps take."""
    node_memory_bytes: float
    """A node's own memory, for offload."""
    flops: float
    """Peak of 16-bit products of one GPU, in operations per second."""
    memory_bandwidth: float
    inside_bandwidth: float
    """Of one GPU to the others of its node."""
    between_bandwidth: float
    """Of one node to the others."""

    def __post_init__(self) -> None:
        if self.reserved_bytes >= self.memory_bytes:
            raise UserError(
                "gpu_memory must be larger than the reserve; got "
                f"gpu_memory={self.memory_bytes / GB:g}, reserve={self.reserved_bytes / GB:g} GB"
            )

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return self.num_nodes * self.ranks_per_node

    @property
    def usable_bytes(self) -> float:
        """Memory of a GPU that a run may take."""
        return self.memory_bytes - self.reserved_bytes


def cluster_sizes(cluster: ClusterSize) -> list[ClusterSize]:
    """Return 1, 2, 4, ... GPUs of a node, then 2, 4, ... nodes, up to 1,024 GPUs."""
    sizes, count = [], 1
    while count < cluster.ranks_per_node:
        sizes.append(replace(cluster, num_nodes=1, ranks_per_node=count))
        count *= 2
    nodes = 1
    while nodes * cluster.ranks_per_node <= MOST_RANKS:
        sizes.append(replace(cluster, num_nodes=nodes))
        nodes *= 2
    return sizes
