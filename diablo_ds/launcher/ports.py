"""The master port: chosen free on the host of rank 0, for each start, and handed to the others.

A port that is chosen elsewhere or earlier, or follows from a job's number, is a neighbour's in the
end. Rank 0's guard chooses it as it starts and writes it to the log folder, which all hosts share.
Only the standard library is used here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from diablo_ds.errors import UserError
from diablo_ds.files import owned
from diablo_ds.files.process_status import process_status
from diablo_ds.launcher.devices import AGENT
from diablo_ds.ranks.free_port import free_port
from diablo_ds.ranks.identity import ANY_PORT, Identity
from diablo_ds.ranks.records import FAILED_FILE, STOP_FILE

PORT_FILE = "master-port"
PORT_WAIT_S = 300.0
"""How long rank 0 may take to be started after another rank."""
PORT_TRIES = 3
"""Further attempts where another process took the master port; they are no restarts."""
_POLL_S = 0.1
_PORT_BYTES = 6


@contextlib.contextmanager
def meeting_folder(
    log_folder: Path | None, identity: Identity, environment: Mapping[str, str]
) -> Iterator[Path]:
    """Yield the folder in which rank 0 writes down the port: the log folder, if there is one.

    Without one, ranks that one launcher of DeepSpeed's started on this host alone meet in a folder
    that is named after it; the last guard to leave removes it.

    Raises:
        UserError: if they have no folder in common, or others can write it.
    """
    if log_folder is not None:
        yield log_folder
        return
    parent = os.getppid()
    is_agent = AGENT in Path(f"/proc/{parent}/cmdline").read_bytes()
    if not is_agent or environment.get("CROSS_SIZE") != "1":
        raise UserError(
            f"any port can be chosen for ranks that share a log folder; got MASTER_PORT={ANY_PORT} "
            "and no --log-folder; give it, the same on all hosts, or give a port"
        )
    started = process_status(parent).started
    folder = Path(tempfile.gettempdir(), f"diablo-ds-{os.getuid()}-{parent}-{started}")
    owned.make_folder(folder, "folder of the master port")
    try:
        yield folder
    finally:  # a rank may be gone before another one has read the port
        with contextlib.suppress(FileNotFoundError):
            owned.write_new_file(folder / f"left-{identity.rank}", b"")
            if len(list(folder.glob("left-*"))) == identity.world_size:
                shutil.rmtree(folder, ignore_errors=True)


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
