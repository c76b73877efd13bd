"""Rank, world size and small reductions; every function also works in a single process."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from diablo_ds.errors import UserError
from diablo_ds.ranks.messages import decode, encode

_MAX_MESSAGE_BYTES = 1 << 30
"""Of one rank; what is announced larger is not waited for."""

T = TypeVar("T")


def rank() -> int:
    """Return this process's rank; 0 before the process group exists and none was announced."""
    return dist.get_rank() if dist.is_initialized() else _number("RANK", default=0)


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else _number("WORLD_SIZE", default=1)


def local_rank() -> int:
    """Return this process's rank on its host."""
    return _number("LOCAL_RANK", default=0)


def local_world_size() -> int:
    """Return the number of ranks on this host."""
    return _number("LOCAL_SIZE", default=_number("LOCAL_WORLD_SIZE", default=1))


def device_memory_bytes() -> int:
    """Return the memory of this rank's GPU or, without one, its share of the host's."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(local_rank()).total_memory)
    host_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return host_bytes // max(1, local_world_size())


def host_name() -> str:
    """Return the name by which messages call this machine."""
    return socket.gethostname()


def is_main_process() -> bool:
    """Return whether this is rank 0."""
    return rank() == 0


def _number(name: str, *, default: int) -> int:
    """Return a launcher's number; commands that train check first that it is one."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def is_alone() -> bool:
    """Return whether there is no other rank to talk to; a dry run joins none."""
    return not dist.is_initialized() or dist.get_world_size() == 1


def gather_floats(
    values: Sequence[float] | torch.Tensor, device: torch.device | str
) -> list[list[float]]:
    """Gather a few numbers from every rank, exactly (fp64). Collective: every rank must call this.

    One collective, and one wait for the device.

    Args:
        values: equally many numbers on each rank; or ``[num_values]``, on the device.
        device: where the backend communicates.

    Returns:
        One list per rank.
    """
    mine = torch.as_tensor(values, dtype=torch.float64, device=device)
    gathered = mine
    if not is_alone():
        gathered = mine.new_empty(dist.get_world_size() * mine.numel())
        dist.all_gather_into_tensor(gathered, mine)
    rows: list[list[float]] = gathered.view(-1, mine.numel()).tolist()
    return rows


def gather_values(value: T) -> list[T]:
    """Gather a value from every rank, as JSON. Collective: every rank must call this.

    Args:
        value: what `diablo_ds.ranks.messages` can encode: plain values, dataclasses of this
            package, errors.

    Raises:
        UserError: if another rank sends something else.
    """
    if is_alone():
        return [value]
    message = _as_tensor(encode(value))
    sizes = [_checked_size(row[0]) for row in gather_floats([message.numel()], message.device)]
    padded = message.new_zeros(max(sizes))
    padded[: message.numel()] = message
    gathered = padded.new_empty(len(sizes) * padded.numel())
    dist.all_gather_into_tensor(gathered, padded)
    rows = gathered.view(len(sizes), -1).cpu()
    return [decode(row[:size].numpy().tobytes()) for row, size in zip(rows, sizes, strict=True)]


def _broadcast_value(value: T) -> T:
    """Return rank 0's value on every rank. Collective: every rank must call this."""
    message = _as_tensor(encode(value) if is_main_process() else bytes(1))
    size = torch.tensor([message.numel()], device=message.device)
    dist.broadcast(size, src=0)
    if is_main_process():
        dist.broadcast(message, src=0)
        return value
    message = message.new_empty(_checked_size(size.item()))
    dist.broadcast(message, src=0)
    received: T = decode(message.cpu().numpy().tobytes())
    return received


def _as_tensor(data: bytes) -> torch.Tensor:
    """Return bytes as a tensor where the backend communicates, uint8 ``[len(data)]``."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or dist.get_backend() in ("gloo", "mpi"):
        device = torch.device("cpu")
    else:
        device = torch.device(accelerator.type, torch.accelerator.current_device_index())
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)


def _checked_size(size: float) -> int:
    if not 0 < size <= _MAX_MESSAGE_BYTES:
        raise UserError(
            f"a rank must send between 1 and {_MAX_MESSAGE_BYTES:,} bytes at once; got {size:,}; "
            "a process of another program may have joined at the master port"
        )
    return int(size)


def check_same(facts: Mapping[str, object], place: str = "rank") -> None:
    """Raise UserError on every rank unless all have the same facts; names two that differ.

    Collective: every rank must call this.

    Args:
        facts: what this rank found on its machine, by name.
        place: where it has to be the same: "rank" or "host".
    """
    difference = first_difference(gather_values((host_name(), dict(facts))), place)
    if difference:
        raise UserError(difference)


def first_difference(found: Sequence[tuple[str, Mapping[str, object]]], place: str) -> str:
    """Return a sentence about the first fact in which a rank differs from rank 0; empty for none.

    Args:
        found: host and facts of each rank.
        place: where they have to be the same.
    """
    (first_host, first), *others = found
    for rank, (host, facts) in enumerate(others, 1):
        for name, value in facts.items():
            if value != first[name]:
                return (
                    f"{name} must be the same on every {place}; got {first[name]} on rank 0 "
                    f"({first_host}) and {value} on rank {rank} ({host})"
                )
    return ""


def on_main_process(function: Callable[[], T]) -> T:
    """Run a function on rank 0 and return its result on every rank.

    A UserError or OSError on rank 0 is raised on every rank, so that none waits forever.
    Collective: every rank must call this.

    Args:
        function: what to run; `diablo_ds.ranks.messages` must be able to encode its result.
    """
    if is_alone():
        return function()
    message: list[Any] = [None, None]
    if is_main_process():
        message = _call(function)
    result: T
    result, error = _broadcast_value(message)
    if error is not None:
        raise error
    return result


def on_every_rank(function: Callable[[], T]) -> T:
    """Run a function on every rank; an error on any rank is raised on all of them.

    Meant for reading and checking input, which may be wrong on one host only: the message then
    names it. Collective: every rank must call this.
    """
    if is_alone():
        return function()
    message = _call(function)
    raise_first_error(message[1])
    result: T = message[0]
    return result


def on_each_host_first(function: Callable[[], T]) -> T:
    """Run a function on the first rank of each host, then on the others, which find its result.

    Meant for work that leaves a file in a host's cache. An error on any rank is raised on every
    rank. Collective: every rank must call this.
    """
    if is_alone():
        return function()
    message: list[Any] = [None, None]
    for first_ranks in (True, False):
        if first_ranks == (local_rank() == 0):
            message = _call(function)
        raise_first_error(message[1])
    result: T = message[0]
    return result


def _call(function: Callable[[], T]) -> list[Any]:
    try:
        return [function(), None]
    except (UserError, OSError) as error:
        return [None, error]


def raise_first_error(error: BaseException | None) -> None:
    """Raise on every rank the error of the first one that has any.

    Collective: every rank must call this.

    Args:
        error: of this rank; None where it has none.
    """
    errors = gather_values((host_name(), error))
    first = next((e for _, e in errors if e is not None), None)
    if first is None:
        return
    failing = [rank for rank, (_, e) in enumerate(errors) if e is not None]
    if type(first) is UserError and len(failing) < len(errors):
        hosts = ", ".join(dict.fromkeys(errors[rank][0] for rank in failing))
        ranks = ", ".join(map(str, failing))
        raise UserError(f"{first} (on {hosts}, rank {ranks}; not on the others)")
    raise first
