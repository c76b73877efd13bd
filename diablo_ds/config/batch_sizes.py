"""Micro batch and global batch: the equation between them, and what is taken where they are open.

global batch = micro batch x accumulation x world size
"""

from __future__ import annotations

from typing import NamedTuple

from diablo_ds.errors import UserError

MOST_MICRO_BATCH = 4
"""The largest micro batch that is chosen by itself."""
LEAST_GLOBAL_BATCH = 8
"""The smallest global batch that is chosen, in sequences."""


class BatchSizes(NamedTuple):
    """The sizes of a run, in sequences, and why the open ones were chosen."""

    micro_batch: int
    """0 where micro batches are counted in tokens."""
    global_batch: int
    global_reason: str = ""
    """Why the global batch was chosen; empty where it was given."""
    micro_reason: str = ""

    @property
    def reason(self) -> str:
        """Why the open sizes were chosen; empty where both were given."""
        return "; ".join(filter(None, (self.global_reason, self.micro_reason)))


def accumulation_steps(global_batch: int, micro_batch: int, world_size: int) -> int:
    """Return the micro batches per rank and step.

    Raises:
        UserError: if micro batch times world size does not divide the global batch.
    """
    assert global_batch, "an open global batch must be chosen first"
    assert micro_batch, "an open micro batch must be chosen first"
    per_micro_step = micro_batch * world_size
    if global_batch % per_micro_step:
        raise UserError(
            "global_batch must be a multiple of micro_batch x world size; got "
            f"global_batch={global_batch}, micro_batch={micro_batch}, world size={world_size}; "
            + _repair(global_batch, per_micro_step, world_size)
        )
    return global_batch // per_micro_step


def choose_batch_sizes(
    micro_batch: int, global_batch: int, world_size: int, *, counted_in_tokens: bool = False
) -> BatchSizes:
    """Return sizes that fit a world size: what is given stays, what is open adapts.

    An open global batch is the smallest multiple of (micro batch x) world size that is at least 8,
    so that every rank has equally many sequences. An open micro batch is the largest up to 4 that
    divides a rank's part of the global batch.

    Args:
        micro_batch: sequences per forward of one rank; 0 for open.
        global_batch: sequences per step over all ranks; 0 for open.
        world_size: number of ranks.
        counted_in_tokens: whether micro batches are counted in tokens; there is then no micro batch
            in sequences, and a given global batch need not divide.

    Raises:
        UserError: if what is given does not divide.
    """
    global_reason = micro_reason = ""
    if not global_batch:
        unit = (micro_batch or 1) * world_size
        global_batch = unit * -(-LEAST_GLOBAL_BATCH // unit)
        of_what = "micro batch x world size" if micro_batch else "the world size"
        global_reason = f"the smallest multiple of {of_what} that is at least {LEAST_GLOBAL_BATCH}"
    if counted_in_tokens:
        return BatchSizes(0, global_batch, global_reason)
    if not micro_batch:
        if global_batch % world_size:
            raise UserError(
                "global_batch must be a multiple of the world size; got "
                f"global_batch={global_batch}, world size={world_size}; "
                + _repair(global_batch, world_size, world_size)
            )
        micro_batch = micro_batches(global_batch, world_size)[-1]
        micro_reason = f"the largest micro batch up to {MOST_MICRO_BATCH} that divides"
    accumulation_steps(global_batch, micro_batch, world_size)
    return BatchSizes(micro_batch, global_batch, global_reason, micro_reason)


def micro_batches(global_batch: int, world_size: int) -> list[int]:
    """Return the micro batches that may be chosen, ascending: those that divide, up to 4."""
    per_rank = global_batch // world_size
    return [size for size in range(1, MOST_MICRO_BATCH + 1) if per_rank % size == 0]


def _repair(global_batch: int, per_micro_step: int, world_size: int) -> str:
    """Say what would divide: another micro batch or, where there is none, another global batch."""
    fitting = [
        size for size in range(1, global_batch + 1) if global_batch % (size * world_size) == 0
    ]
    if fitting:
        return f"micro_batch may be {', '.join(map(str, fitting))}"
    multiple = max(1, global_batch // per_micro_step) * per_micro_step
    return f"global_batch may be {multiple} or another multiple of {per_micro_step}"
