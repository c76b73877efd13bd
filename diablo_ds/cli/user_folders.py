"""The folders that the environment names for a user, looked at before any library uses them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from diablo_ds.errors import UserError
from diablo_ds.files.cache import cache_folder
from diablo_ds.files.owners import describe_access
from diablo_ds.files.process_folders import process_folder, shared_process_folder

INDUCTOR = "TORCHINDUCTOR_CACHE_DIR"
"""PyTorch makes this folder in every run, also where nothing is compiled."""
_PREFIX = "diablo-ds-inductor-"
FOLDERS = (
    "HOME",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    INDUCTOR,
    "TORCH_EXTENSIONS_DIR",
    "TORCH_HOME",
    "TRITON_HOME",
    "TRITON_CACHE_DIR",
    "CUDA_CACHE_PATH",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "MPLCONFIGDIR",
    "TMPDIR",
)
"""Variables that name one; libraries end in a bare error where there is something else."""


def check_user_folders(environment: Mapping[str, str]) -> None:
    """Refuse variables that name what is no folder, or one that this user cannot enter.

    Without the variable, the home folder is that of the system's list of users. Whether others can
    change what is in a folder is checked where it is used.

    Args:
        environment: the variables.

    Raises:
        UserError: if one does; names owner, group and mode.
    """
    home = os.path.expanduser("~")
    if not os.path.isabs(home):  # libraries would create a folder called `~`
        raise UserError(
            "HOME must be set to an absolute path where the user has no entry in the system's "
            f"list; got HOME={environment.get('HOME')!r}, uid={os.getuid()}; set it to a folder "
            "that you can write"
        )
    for name, path in {**environment, "HOME": home}.items():
        if name in FOLDERS and path:
            _check(name, Path(path))
    named = environment.get(INDUCTOR)
    if named and not os.access(_nearest(Path(named)), os.W_OK | os.X_OK):
        raise UserError(
            f"{INDUCTOR} must name a folder that you can write or make; got {named}, "
            f"{_describe(_nearest(Path(named)))}; unset it, or set it to a folder of your own"
        )


@contextlib.contextmanager
def torch_kept_out_of_tmp() -> Iterator[None]:
    """Give PyTorch's cache of compiled kernels a folder that no other user can create first.

    By default it is in /tmp under the user's name, whoever created it. Without a cache folder that
    can be written it is one for this process and those that it starts.
    """
    with contextlib.ExitStack() as resources:
        if given := os.environ.get(INDUCTOR):
            resources.enter_context(shared_process_folder(Path(given), _PREFIX))
        elif (folder := _default_folder()) is not None:
            if not os.access(_nearest(folder), os.W_OK):
                folder = resources.enter_context(process_folder(_PREFIX))
            os.environ[INDUCTOR] = str(folder)
        yield


def _default_folder() -> Path | None:
    """Return the folder in the cache; None without a home, which `check_user_folders` says."""
    try:
        return cache_folder() / "inductor"
    except RuntimeError:
        return None


def _check(name: str, path: Path) -> None:
    repair = f"set {name} to a folder of your own"
    if name == "HOME":
        repair += ", as `sudo -H` does"
    try:
        os.stat(f"{path}/.")  # asks for the right to enter
    except NotADirectoryError:
        raise UserError(f"{name} must name a folder; got {_describe(path)}; {repair}") from None
    except PermissionError:
        raise UserError(
            f"{name} must name a folder that you can enter; got {_describe(path)}; {repair}"
        ) from None
    except (OSError, ValueError):  # there is none yet, which libraries make
        return


def _nearest(path: Path) -> Path:
    """Return a path, or the nearest one above it that can be looked at."""
    return next(
        (place for place in (path, *path.absolute().parents) if os.path.exists(place)), path
    )


def _describe(path: Path) -> str:
    """Return a path with its owner, group and mode, as far as this user can see them."""
    with contextlib.suppress(OSError):
        return f"{path}, {describe_access(os.stat(path))}"
    return f"{path}, which is in a folder of somebody else's"
