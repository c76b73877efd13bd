"""Where NVMe offload puts a rank's part: in a folder of this user, run and rank.

DeepSpeed's own names below `nvme_path` say neither user nor run, and it uses whatever has them: two
users would collide, and whoever made the folder first could replace weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diablo_ds.files import owned
from diablo_ds.ranks import distributed
from diablo_ds.zero.ds_config import offload_device

_WHAT = "folder for NVMe offload"
_REPAIR = "name another nvme_path"


@contextlib.contextmanager
def private_offload(ds_config: dict[str, Any], run_folder: Path) -> Iterator[None]:
    """Have a DeepSpeed config offload to a folder of this rank's, which is removed at the end.

    Collective: every rank must call this.

    Args:
        ds_config: changed in place.
        run_folder: what tells this run from others of the same user.

    Raises:
        UserError: if the folder cannot be made, or others can change it.
    """
    zero = ds_config.get("zero_optimization", {})
    sections = [
        zero[f"offload_{what}"]
        for what in ("param", "optimizer")
        if offload_device(ds_config, what) == "nvme"
    ]
    folders: set[Path] = set()

    def choose() -> None:
        for section in sections:
            folder = offload_folder(Path(section["nvme_path"]), run_folder, distributed.rank())
            for path in (folder.parents[1], folder.parent, folder):
                owned.make_folder(path, _WHAT, repair=_REPAIR)
            section["nvme_path"] = str(folder)
            folders.add(folder)

    if sections:
        distributed.on_every_rank(choose)
    try:
        yield
    finally:
        for folder in folders:
            with contextlib.suppress(OSError):
                owned.remove_own(folder)
                folder.parent.rmdir()
                folder.parents[1].rmdir()


def offload_folder(nvme_path: Path, run_folder: Path, rank: int) -> Path:
    """Return the folder of a rank below an ``nvme_path``."""
    run = hashlib.sha256(os.fsencode(run_folder.absolute())).hexdigest()[:16]
    return nvme_path / f"diablo-ds-{os.geteuid()}" / run / f"rank-{rank}"
