"""Where compiled layers are kept between runs, and how many processes compile them."""

from __future__ import annotations

import os
from pathlib import Path

from diablo_ds.config.run import RunConfig
from diablo_ds.files import owned, trees
from diablo_ds.files.cache import cache_folder
from diablo_ds.ranks import distributed
from diablo_ds.ranks.cores import num_cores

CACHE_VARIABLE, THREADS_VARIABLE = "TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS"
_MOST_THREADS = 8


def set_up_cache(run_config: RunConfig) -> Path:
    """Keep compiled code in the user's cache folder, so that a resumed run finds it there.

    A folder named by the variable TORCHINDUCTOR_CACHE_DIR is used instead. Its files are executed
    as code, so nobody else may be able to change them. Nothing is ever removed.

    Args:
        run_config: names the cache folder.

    Raises:
        UserError: if the folder cannot be made, or others can change it or one in it.
    """
    default = cache_folder(run_config.cache_folder) / "inductor"
    folder = Path(os.environ.get(CACHE_VARIABLE) or default)
    what = "folder of compiled layers"
    repair = f"name another by {CACHE_VARIABLE}"
    owned.make_writable_folder(folder, what, f"the variable {CACHE_VARIABLE}", repair=repair)
    trees.check_above(folder, what, repair=repair)
    trees.check_upper(folder, what, repair=repair)
    os.environ[CACHE_VARIABLE] = str(folder)
    # Compiler processes of each rank; PyTorch starts one per core and rank, up to 32.
    cores_per_rank = num_cores() // distributed.local_world_size()
    os.environ.setdefault(THREADS_VARIABLE, str(max(1, min(_MOST_THREADS, cores_per_rank))))
    return folder
