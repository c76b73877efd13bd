"""What `launch` and `slurm` both ask of the ranks: where they meet, what they get, restarts."""

from __future__ import annotations

from dataclasses import dataclass

from diablo_ds.config.setting import check_settings, setting
from diablo_ds.errors import UserError
from diablo_ds.launcher.quoting import check_host, check_word, split_words
from diablo_ds.ranks.identity import ANY_PORT

LARGEST_PORT = 65535


@dataclass(frozen=True, kw_only=True)
class RankSettings:
    """Settings of the ranks, however they are started.

    Raises:
        UserError: if a value is illegal.
    """

    master_addr: str = setting(
        "", "Address at which rank 0 listens.", "network", shown_default="first host"
    )
    master_port: int = setting(
        ANY_PORT,
        "Port of rank 0; 0 for one that is free, chosen for each start.",
        "network",
        minimum=0,
        maximum=LARGEST_PORT,
    )
    interface: str = setting("", "Network interface for NCCL and Gloo, e.g. ib0.", "network")
    env: tuple[str, ...] = setting(
        (),
        "Environment variable of the ranks: NAME=VALUE, or NAME for the value here, which is never "
        "shown or written; repeatable.",
        "environment",
    )
    wrap: str = setting("", "Command prefix, e.g. apptainer exec --nv x.sif.", "environment")
    max_restarts: int = setting(0, "Restarts after failures.", "restarts", minimum=0)

    def __post_init__(self) -> None:
        check_settings(self)
        check_host("master_addr", self.master_addr)
        check_word("interface", self.interface)
        split_words("wrap", self.wrap)


def count_ranks(gpus_per_node: int | None, ranks_per_node: int | None) -> int | None:
    """Return the ranks of each host by its two names; None where neither is given.

    Raises:
        UserError: if they differ.
    """
    if gpus_per_node and ranks_per_node and gpus_per_node != ranks_per_node:
        raise UserError(
            "a GPU takes one rank, so gpus_per_node and ranks_per_node must be equal; got "
            f"gpus_per_node={gpus_per_node}, ranks_per_node={ranks_per_node}; give one of them"
        )
    return gpus_per_node or ranks_per_node
