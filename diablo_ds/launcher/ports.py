"""What ranks need to meet: a secret, a file or a port that is free on the host of rank 0.

A port that is chosen elsewhere or earlier, or follows from a job's number, is a neighbour's in the
end. Rank 0's guard chooses it as it starts and writes it to the log folder, which all hosts share.
Only the standard library is used here.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

from diablo_ds.errors import UserError
from diablo_ds.files import owned
from diablo_ds.ranks.environment import RUN_KEY, STORE_FILE, shared_key
from diablo_ds.ranks.free_port import free_port
from diablo_ds.ranks.identity import ANY_PORT, Identity
from diablo_ds.ranks.launcher_folder import is_started_together, launcher_folder
from diablo_ds.ranks.records import FAILED_FILE, STOP_FILE

PORT_FILE = "master-port"
PORT_WAIT_S = 300.0
"""How long rank 0 may take to be started after another rank."""
PORT_TRIES = 3
"""Further attempts where another process took the master port; they are no restarts."""
_POLL_S = 0.1
_PORT_BYTES = 6


def meeting_variables(
    log_folder: Path | None,
    identity: Identity,
    environment: Mapping[str, str],
    resources: contextlib.ExitStack,
    *,
    is_wrapped: bool = False,
) -> dict[str, str]:
    """Return the variables by which the rank of this guard finds the others, and knows them.

    What a launcher of this program's has given stays. Otherwise ranks that were started together
    on this host get a secret and a file in a private folder; ranks that have a log folder in common
    get a secret in it.

    Args:
        log_folder: the log folder, shared by all hosts, if there is one.
        identity: the rank.
        environment: of the rank.
        resources: keeps the folder until the guard leaves.
        is_wrapped: whether the rank is in a container, which may have a /tmp of its own.

    Raises:
        UserError: if any port can be taken, but they have no folder in common; or others can write
            the folder that they have.
        OSError: if rank 0 has chosen no port.
    """
    if identity.world_size == 1:  # nobody listens
        return {"MASTER_PORT": str(free_port())} if identity.port == ANY_PORT else {}
    found: dict[str, str] = {}
    folder = log_folder
    if RUN_KEY not in environment and is_started_together(identity):
        folder = resources.enter_context(launcher_folder(identity, environment))
        if not is_wrapped:
            found[STORE_FILE] = str(folder / "store")
    if folder is not None and RUN_KEY not in environment:
        found[RUN_KEY] = shared_key(folder)
    if identity.port == ANY_PORT:
        if folder is None:
            raise UserError(
                "any port can be chosen for ranks that share a log folder; got "
                f"MASTER_PORT={ANY_PORT} and no --log-folder; give it, the same on all hosts, or "
                "give a port"
            )
        found["MASTER_PORT"] = str(agree_on_port(folder, identity.rank))
    return found


def agree_on_port(folder: Path, rank: int) -> int:
    """Return the master port of this start: rank 0 chooses it, and the others wait for it.

    Raises:
        OSError: if rank 0 chose none, since it was not started or has failed.
    """
    path = folder / PORT_FILE
    if rank == 0:
        port = free_port()
        path.unlink(missing_ok=True)  # of a start that was killed before it came further
        owned.write_new_file(path, f"{port:05d}\n".encode())
        return port
    launcher = os.getppid()
    deadline = time.monotonic() + PORT_WAIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            data = owned.read_own_file(path)
            if len(data) == _PORT_BYTES:
                return int(data)
        if any((folder / name).exists() for name in (FAILED_FILE, STOP_FILE)):
            raise OSError(f"rank 0 must choose the master port; the run ended before, in {folder}")
        if os.getppid() != launcher:
            raise OSError("the launcher is gone")
        time.sleep(_POLL_S)
    raise OSError(
        f"rank 0 must choose the master port; got none from it in {PORT_WAIT_S:.0f} s, in {folder}"
    )
