"""How the ranks of a run find one another, and nobody else finds them.

PyTorch's store is a server without authentication on all network interfaces. A single process
needs no server; the ranks of one host meet in a private folder if their launcher created one; and
if the launcher gave them a key, they prove to one another that they have it before they exchange
anything else.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from diablo_ds.errors import UserError
from diablo_ds.ranks import distributed
from diablo_ds.ranks.environment import RUN_KEY, STORE_FILE

_TELLING_S = 60.0
"""How long rank 0 stays to tell the other ranks why the run cannot start."""
_PROOF_BYTES = hashlib.sha256().digest_size


class PortInUseError(OSError):
    """Another process has the master port; the next attempt uses another one."""


def join(
    init: Callable[..., object], backend: str, timeout: timedelta, facts: Mapping[str, str]
) -> None:
    """Join the process group that the variables announce.

    Collective: every rank must call this.

    Args:
        init: makes the process group with more than one rank: `deepspeed.init_distributed`.
        backend: "nccl", "gloo" or another of PyTorch's.
        timeout: how long a rank waits in a collective.
        facts: what this rank found on its machine and every host must have, by name.

    Raises:
        PortInUseError: if the master port is in use.
        UserError: if a host has other facts.
    """
    rank, world_size = distributed.rank(), distributed.world_size()
    store_file = os.environ.pop(STORE_FILE, "")
    is_on_one_host = world_size == 1 or bool(store_file)
    if is_on_one_host and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        if world_size == 1 and not dist.is_initialized():
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
        where: dict[str, Any] = {}
        server = None
        if store_file and world_size > 1:
            where = {"init_method": f"file://{store_file}", "rank": rank, "world_size": world_size}
        elif not dist.is_initialized():
            server = check_same_before_joining(facts)
        init(backend, **where)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise PortInUseError(
            "master port must be free; got one in use, MASTER_PORT="
            f"{os.environ.get('MASTER_PORT')}; give another, or --master_port 0 for any free one"
        ) from None
    del server  # the process group has it too


def check_same_before_joining(facts: Mapping[str, str]) -> object:
    """Raise UserError on every rank unless all that were announced have the same facts.

    Meant for what a process group needs in order to form, such as the kind of device: ranks
    that differ in it would wait for each other forever. Collective: every rank must call this,
    before the process group exists.

    Args:
        facts: what this rank found on its machine, by name.

    Returns:
        An object to keep alive until the process group exists: it serves the master port.

    Raises:
        UserError: on every rank, if two ranks differ; names them and their hosts.
    """
    store, own_rank, num_ranks = next(rendezvous("env://"))
    prefix = f"diablo_ds-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if own_rank:
        store.set(f"{prefix}-{own_rank}", json.dumps([distributed.host_name(), dict(facts)]))
        difference = store.get(f"{prefix}-difference").decode()
        store.add(f"{prefix}-told", 1)
    else:
        others = [json.loads(store.get(f"{prefix}-{rank}")) for rank in range(1, num_ranks)]
        difference = distributed.first_difference(
            [(distributed.host_name(), dict(facts)), *others], "host"
        )
        store.set(f"{prefix}-difference", difference)
        deadline = time.monotonic() + _TELLING_S
        while store.add(f"{prefix}-told", 0) < num_ranks - 1 and time.monotonic() < deadline:
            time.sleep(0.01)  # with this process the store ends, from which the others read
    if difference:
        raise UserError(difference)
    return store


def check_key(device: torch.device | str) -> None:
    """Refuse to continue with a process that does not have the key of this run.

    Each rank sends a keyed hash of its number, which neither reveals the key nor serves another
    rank. Nothing else that a rank sends is read before. Without a key nothing is checked.
    Collective: every rank must call this.

    Args:
        device: where the backend communicates.

    Raises:
        UserError: if a rank has another key or none, on the ranks that have one.
    """
    key = os.environ.pop(RUN_KEY, "").encode()
    if distributed.world_size() == 1:
        return
    mine = torch.tensor(list(_proof(key, distributed.rank())), dtype=torch.uint8, device=device)
    proofs = [torch.empty_like(mine) for _ in range(distributed.world_size())]
    dist.all_gather(proofs, mine)
    strangers = [
        rank
        for rank, proof in enumerate(proofs)
        if not hmac.compare_digest(bytes(proof.tolist()), _proof(key, rank))
    ]
    if strangers:
        raise UserError(
            "every rank must have the key that the launcher gave to this run; got another, or "
            f"none, on ranks {', '.join(map(str, strangers))} as seen by rank "
            f"{distributed.rank()}; either the hosts do not share the log folder, or a process of "
            "somebody else's has joined at the master port"
        )


def _proof(key: bytes, rank: int) -> bytes:
    """Return the bytes by which a rank proves that it has a key; zeros for no key."""
    if not key:
        return bytes(_PROOF_BYTES)
    return hmac.digest(key, f"rank {rank}".encode(), "sha256")
