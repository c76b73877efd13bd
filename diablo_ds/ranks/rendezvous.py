"""How the ranks of a run find one another: where they meet, and a process group of them alone.

PyTorch's store is a server without authentication on all network interfaces. A single process needs
none; the ranks of one host meet in a private folder, or at a port of the loopback interface; and
`diablo_ds.ranks.joining` tells strangers from ranks before a group exists, and once it does.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from diablo_ds.ranks import distributed
from diablo_ds.ranks.environment import RUN_KEY, STORE_FILE, shared_key
from diablo_ds.ranks.identity import find_identity
from diablo_ds.ranks.joining import PROOF_BYTES, Membership, PortInUseError, meet
from diablo_ds.ranks.launcher_folder import is_started_together, launcher_folder

logger = logging.getLogger("diablo_ds")
_WITHOUT_SECRET = (
    "These ranks have no secret by which to know each other: whoever reaches the port at which "
    "they meet can join and disturb them. Start them with diablo-ds launch or slurm, or give "
    "launch/train.py a --log-folder that all hosts share."
)
_SCHEME = "diablo-ds"
_LOOPBACK = "127.0.0.1"
_SOCKET_NAMES = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
_BACKLOG = 1024
_stores: list[tuple[Any, int, int]] = []
"""The store of this process, its rank and the number of ranks, for PyTorch to ask for."""


def join(
    init: Callable[..., object],
    backend: str,
    timeout: timedelta,
    facts: Mapping[str, str],
    device: torch.device | str,
) -> str:
    """Join the process group that the variables announce, with ranks that have the run's secret.

    Nothing that another rank says is believed before it has proved that it has the secret, where
    the launcher gave one. Collective: every rank must call this.

    Args:
        init: makes the process group: `deepspeed.init_distributed`.
        backend: "nccl", "gloo" or another of PyTorch's.
        timeout: how long a rank waits in a collective.
        facts: what this rank found on its machine and every host must have, by name.
        device: where the backend communicates.

    Returns:
        A text that all ranks have in common and nobody else can guess; while the group is made it
        stands in MASTER_ADDR, by which DeepSpeed's op for CPUs names its shared memory.

    Raises:
        PortInUseError: if the master port is in use.
        StrangerError: if a process without the secret has joined.
        UserError: if a host has other facts.
        OSError: if rank 0 cannot be reached.
    """
    secret, store_file = os.environ.pop(RUN_KEY, ""), os.environ.pop(STORE_FILE, "")
    if dist.is_initialized():
        init(backend)
        return os.environ.get("MASTER_ADDR", "")
    rank, world_size = distributed.rank(), distributed.world_size()
    secret = secret or _common_secret()
    mine = Membership(secret.encode(), rank, world_size)
    if not secret and world_size > 1 and rank == 0:
        logger.warning(_WITHOUT_SECRET)
    if distributed.local_world_size() == world_size and sys.platform == "linux":
        for name, interface in _SOCKET_NAMES.items():
            os.environ.setdefault(name, interface)
    with _reported():
        store = _make_store(mine, store_file, timeout)
        mine = meet(store, mine, facts)
        _stores.append((store, rank, world_size))
        if not _is_registered:
            register_rendezvous_handler(_SCHEME, _hand_over)
            _is_registered.append(True)
        with _address(mine.label()):
            init(backend, init_method=f"{_SCHEME}://", rank=rank, world_size=world_size)
    if world_size > 1:
        mine.check_proofs(_gather_proofs(mine, device))
    return mine.label()


_is_registered: list[bool] = []


def _common_secret() -> str:
    """Return the secret of ranks that one launcher started here; empty where they have none."""
    found = find_identity(os.environ)
    if not is_started_together(found):
        return ""
    with launcher_folder(found, os.environ) as folder:
        return shared_key(folder)


def _hand_over(url: str, **_: Any) -> Iterator[tuple[Any, int, int]]:
    """Give PyTorch the store in which ranks have met."""
    yield _stores[-1]
    raise RuntimeError("ranks meet once")


def _make_store(mine: Membership, store_file: str, timeout: timedelta) -> Any:
    """Return the store in which the ranks of this run meet."""
    if mine.world_size == 1:
        return dist.HashStore()  # type: ignore[attr-defined]
    is_on_one_host = distributed.local_world_size() == mine.world_size
    if store_file:
        store: Any = dist.FileStore(store_file, mine.world_size)  # type: ignore[attr-defined]
    elif is_on_one_host and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        store = _loopback_store(mine, int(os.environ["MASTER_PORT"]), timeout)
    else:
        store, _, _ = next(rendezvous("env://"))
    store.set_timeout(timeout)
    return store


def _loopback_store(mine: Membership, port: int, timeout: timedelta) -> Any:
    """Return a store that no other machine can reach; PyTorch's own listens on all interfaces."""
    listening: dict[str, Any] = {}
    if mine.rank == 0:
        server = socket.create_server((_LOOPBACK, port), backlog=_BACKLOG)
        listening = {"master_listen_fd": server.detach()}
    return dist.TCPStore(  # type: ignore[attr-defined]
        _LOOPBACK, port, mine.world_size, mine.rank == 0, timeout=timeout, **listening
    )


def _gather_proofs(mine: Membership, device: torch.device | str) -> list[bytes]:
    """Return what each rank of the group proves. Collective: every rank must call this."""
    own = torch.tensor(list(mine.proof(mine.rank, "group")), dtype=torch.uint8, device=device)
    gathered = own.new_empty(mine.world_size * PROOF_BYTES)
    dist.all_gather_into_tensor(gathered, own)
    return [bytes(row) for row in gathered.view(mine.world_size, PROOF_BYTES).tolist()]


@contextlib.contextmanager
def _address(text: str) -> Iterator[None]:
    """Have MASTER_ADDR hold another text for a while."""
    before = os.environ.get("MASTER_ADDR")
    os.environ["MASTER_ADDR"] = text
    try:
        yield
    finally:
        os.environ.pop("MASTER_ADDR")
        if before is not None:
            os.environ["MASTER_ADDR"] = before


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Turn errors of PyTorch's network into those that a user can act on."""
    try:
        yield
    except (dist.DistNetworkError, dist.DistStoreError, OSError) as error:
        taken = "EADDRINUSE" in str(error) or getattr(error, "errno", None) == errno.EADDRINUSE
        place = f"MASTER_ADDR={os.environ.get('MASTER_ADDR')}, MASTER_PORT="
        place += str(os.environ.get("MASTER_PORT"))
        if taken:
            raise PortInUseError(
                f"master port must be free; got one in use, {place}; give another, or "
                "--master_port 0 for any free one"
            ) from None
        if isinstance(error, OSError):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise OSError(
            f"every rank must reach rank 0 at the master port; got {place}: {reason}"
        ) from None
