"""A private folder in common for the ranks that one launcher started on this host alone.

Plain `deepspeed`, `torchrun` and `srun` hand nothing secret to their ranks. What these have in
common is the process above them: its number and start time name the folder, in which they find a
secret. Only the standard library is used here.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from diablo_ds.files import owned
from diablo_ds.files.process_status import process_status
from diablo_ds.ranks.identity import Identity

_LAUNCHERS = re.compile(
    r"deepspeed\.launcher\.launch|torch\.distributed\.(run|launch)|"
    r"torchrun|mpirun|mpiexec(\.hydra)?|orted|prted|prterun|hydra_pmi_proxy"
)
"""The module or file of a process that starts ranks."""


def is_started_together(identity: Identity) -> bool:
    """Return whether all ranks are on this host, each started by the process above this one."""
    if identity.local_size != identity.world_size or identity.world_size == 1:
        return False
    try:
        line = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return False
    words = [os.fsdecode(word) for word in line.split(b"\0")]
    names = [os.path.basename(word) for word in words[:4]]
    return words[0].startswith("slurmstepd") or any(map(_LAUNCHERS.fullmatch, names))


@contextlib.contextmanager
def launcher_folder(identity: Identity, environment: Mapping[str, str]) -> Iterator[Path]:
    """Yield the folder of ranks that were started together; the last one to leave removes it.

    Raises:
        UserError: if others can write it.
        OSError: if it cannot be made.
    """
    parent = os.getppid()
    again = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    name = f"diablo-ds-{os.getuid()}-{parent}-{process_status(parent).started}-{again}"
    folder = _private_parent(environment) / name
    owned.make_folder(folder, "folder in which ranks meet")
    try:
        yield folder
    finally:  # a rank may be gone before another one has come
        with contextlib.suppress(FileNotFoundError):
            owned.write_new_file(folder / f"left-{identity.rank}", b"")
            if len(list(folder.glob("left-*"))) == identity.world_size:
                with contextlib.suppress(OSError):
                    owned.remove_own(folder)


def _private_parent(environment: Mapping[str, str]) -> Path:
    """Return the user's own folder for such files, where nobody can take a name, or /tmp."""
    folder = Path(environment.get("XDG_RUNTIME_DIR", ""))
    with contextlib.suppress(OSError):
        found = os.lstat(folder)
        is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
        if folder.is_absolute() and is_own and not found.st_mode & 0o077:
            return folder
    return Path(tempfile.gettempdir())
