"""Start DeepSpeed and join the process group, quietly."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from diablo_ds.errors import UserError
from diablo_ds.files import owned
from diablo_ds.files.owners import describe_access
from diablo_ds.ranks import distributed, identity, rendezvous
from diablo_ds.ranks.cores import num_cores
from diablo_ds.ranks.noise import is_noise
from diablo_ds.ranks.software import code_digest, versions
from diablo_ds.zero.build_lock import (
    check_code_caches,
    check_extensions,
    extensions_folder,
    prefer_own_programs,
    removing_stale_locks,
)


class _NoiseFilter(logging.Filter):
    """Drops DeepSpeed's known start-up warnings; on ranks other than 0, all but errors."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if record.levelno >= logging.ERROR:
            return True
        return distributed.is_main_process() and not is_noise(message)


def import_deepspeed() -> Any:
    """Import DeepSpeed without its start-up noise, and return the module."""
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Told to DeepSpeed's authors, not to its users.
    warnings.filterwarnings("ignore", "`torch.distributed.*` is deprecated", FutureWarning)
    with contextlib.redirect_stdout(io.StringIO()):
        import deepspeed
    for name in ("DeepSpeed", "deepspeed"):
        library = logging.getLogger(name)
        if not any(isinstance(f, _NoiseFilter) for f in library.filters):
            library.addFilter(_NoiseFilter())
    return deepspeed


_SHARED_MEMORY = Path("/dev/shm")


def _shared_buffer(address: str, rank: object) -> str:
    """Return the name of the buffer of a rank that DeepSpeed's op for CPUs shares on a host."""
    port = os.environ.get("MASTER_PORT", "")
    return f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{rank}"


def _check_shared_memory() -> None:
    """Raise UserError where another user has made a buffer of this run first, as he could read it.

    The names can be known before: they are made of user, address, port and rank.
    """
    for path in _SHARED_MEMORY.glob(_shared_buffer("*", "*")):
        with contextlib.suppress(FileNotFoundError):
            if not owned.is_own_file(path):
                raise UserError(
                    f"{_BUFFER_RULE}; got {path}, {describe_access(path.lstat())}; {_BUFFER_REPAIR}"
                )


_BUFFER_RULE = "a buffer in shared memory must be made by this run"
_BUFFER_REPAIR = "start again with another --master-port, and tell the machine's administrator"


def _unlink_shared_memory(address: str) -> None:
    """Free the name of the 69 MB buffer that DeepSpeed's op for CPUs leaves in memory forever.

    Every rank has mapped every buffer by then, and a mapping outlives its name.

    Args:
        address: what MASTER_ADDR was as the buffers were made.

    Raises:
        UserError: if another user made it after `_check_shared_memory`.
    """
    if torch.distributed.get_backend() == "gloo":
        torch.distributed.barrier()
        path = _SHARED_MEMORY / _shared_buffer(address, distributed.rank())
        try:
            path.unlink(missing_ok=True)
        except PermissionError as error:
            raise UserError(f"{_BUFFER_RULE}; got {error}; {_BUFFER_REPAIR}") from None


def init_process_group() -> torch.device:
    """Join the process group that the launcher announced, or make one of this process alone.

    Returns:
        The device of this rank.

    Raises:
        UserError: if the variables do not tell which rank this is, other users can change the
            compiled ops, or a process without the run's key joined.
    """
    if not torch.distributed.is_initialized():
        identity.announce()
    deepspeed = import_deepspeed()
    from deepspeed.constants import default_pg_timeout

    accelerator = deepspeed.get_accelerator()
    if accelerator.device_name() == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, num_cores() // distributed.local_world_size()))
    if not deepspeed.comm.is_initialized():
        quietly = contextlib.redirect_stdout(io.StringIO())  # "op built successfully"
        extensions = extensions_folder()
        check_extensions(extensions)
        check_code_caches()
        prefer_own_programs()
        if accelerator.device_name() == "cpu":
            _check_shared_memory()
        with removing_stale_locks(extensions), quietly:
            accelerator.set_device(distributed.local_rank())
            address = rendezvous.join(
                functools.partial(deepspeed.init_distributed, verbose=False),
                accelerator.communication_backend_name(),
                default_pg_timeout,
                {"device": accelerator.device_name(), **versions(), "source files": code_digest()},
                accelerator.current_device_name(),
            )
        _unlink_shared_memory(address)
    return torch.device(accelerator.current_device_name())
