"""Environment variables of the ranks: those that may be seen, and how the others travel unseen.

What is on a command line can be read by every user of a machine, and what is in a batch script or a
log stays there. A variable that is given by its name alone, or whose name is a secret's, therefore
reaches the ranks by the environment of their processes or, on other hosts, by a file that only this
user can read and that is gone once it was read. Only the standard library is used here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from diablo_ds.errors import UserError
from diablo_ds.files import modes, owned
from diablo_ds.files.owners import describe_access
from diablo_ds.files.strict_json import check_text

HIDDEN_FILE = "environment"
"""In the log folder: the hidden variables, for ranks on other hosts, until all have read them."""
EXPORTS_FILE = "deepspeed_env"
"""In the log folder: what DeepSpeed exports on other hosts, in the form of its `.deepspeed_env`."""
RUN_KEY = "DIABLO_RUN_KEY"
"""Variable with the secret of one start, which its ranks have in common, and nobody else has."""
STORE_FILE = "DIABLO_STORE_FILE"
"""Variable with the file, in a private folder, by which the ranks of one host meet."""
_KEY_FILE = "key"
_KEY_BYTES = 32
_SHARED_WAIT_S = 30.0
"""How long a file may take to be seen on another host."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""Of a variable, for every shell."""
_SECRET_NAME = re.compile(r"TOKEN(?!IZ)|KEY|SECRET|PASS|PWD.|CREDENTIAL|AUTH", re.IGNORECASE)
_SECRET_ASSIGNMENT = re.compile(r"\b([A-Za-z_]\w*)=['\"]?(?=[^\s$'\"])")
_EXPORTED = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")
"""Beginnings of the names that DeepSpeed puts on the command lines of its runners."""
_OF_IMPORTS = frozenset(
    {"PYTHONPATH", "PYTHONSAFEPATH", "PYTHONHOME", "PYTHONNOUSERSITE", "PYTHONUSERBASE"}
)
"""By them Python finds its packages, before it can read a file with variables."""
_EXPORTS_AT_HOME = ".deepspeed_env"
MASK = "***"


@dataclass(frozen=True)
class RankVariables:
    """Variables that ranks get."""

    shown: Mapping[str, str] = field(default_factory=dict)
    hidden: Mapping[str, str] = field(default_factory=dict, repr=False)
    written_out: tuple[str, ...] = ()
    """Names of hidden variables whose value was given on the command line."""


def is_secret_name(name: str) -> bool:
    """Return whether a variable's name is that of a secret, such as HF_TOKEN or WANDB_API_KEY."""
    return _SECRET_NAME.search(name) is not None


def secret_assignment(text: str) -> str:
    """Return the name of a secret variable that a line of shell sets to a plain value, or none."""
    names = (match[1] for match in _SECRET_ASSIGNMENT.finditer(text))
    return next((name for name in names if is_secret_name(name)), "")


def parse_env(pairs: tuple[str, ...]) -> RankVariables:
    """Read environment variables: NAME=VALUE, or NAME for the value it has here.

    Raises:
        UserError: if one is neither, or a value that will be seen holds a control character.
    """
    shown: dict[str, str] = {}
    hidden: dict[str, str] = {}
    written_out = []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        masked = f"{name}={MASK}" if is_secret_name(name) and equals else pair
        if not _NAME.fullmatch(name) or (not equals and name not in os.environ):
            raise UserError(
                "env must be NAME=VALUE, or the NAME of a variable that is set here; got "
                f"env={masked!r}"
            )
        shown.pop(name, None)
        hidden.pop(name, None)
        if is_secret_name(name) or not equals:
            hidden[name] = value if equals else os.environ[name]
            written_out += [name] * bool(equals)
        else:
            check_text(env=pair)
            shown[name] = value
    return RankVariables(shown, hidden, tuple(dict.fromkeys(written_out)))


# --- from a launcher to guards on other hosts ----------------------------------------------------


def write_hidden(folder: Path, variables: Mapping[str, str]) -> Path:
    """Write variables to a file in a log folder, mode 0600, and return it."""
    path = folder / HIDDEN_FILE
    path.unlink(missing_ok=True)  # of a launcher that was killed
    write_secret(path, json.dumps(dict(variables)).encode())
    return path


def write_secret(path: Path, data: bytes) -> None:
    """Write a new file that this user alone can read, whoever may read the others of a run.

    Raises:
        OSError: if something has that name, or it cannot be written.
    """
    with owned.open_owned(path, "xb") as file:
        os.fchmod(file.fileno(), modes.PRIVATE_FILE)
        file.write(data)


def read_hidden(path: Path) -> dict[str, str]:
    """Return the variables of such a file.

    Raises:
        UserError: if it is not there, or is another user's.
    """
    try:
        variables: dict[str, str] = json.loads(_wait_for(path))
    except (OSError, ValueError) as error:
        raise UserError(
            f"the ranks' variables must be in the log folder, which all hosts share; got {error}"
        ) from None
    return variables


def remove_start(hidden_file: Path | None, store_file: str | None) -> None:
    """Remove what a launcher makes for a start, where there is no launcher to do it."""
    with contextlib.suppress(OSError):
        if hidden_file is not None:
            hidden_file.unlink(missing_ok=True)
        if store_file:
            Path(store_file).unlink(missing_ok=True)
            Path(store_file).parent.rmdir()


def new_key() -> str:
    """Return a new secret: 32 random bytes, as hexadecimal digits."""
    return secrets.token_hex(_KEY_BYTES)


def shared_key(folder: Path) -> str:
    """Return the same secret on every host, where each has a launcher of its own.

    The first one writes it to a folder that all share.

    Raises:
        UserError: if it is another user's.
    """
    path = folder / _KEY_FILE
    try:
        write_secret(path, new_key().encode())
    except FileExistsError:
        pass
    except OSError as error:
        raise UserError(f"the folder of a run's key must be writable; got {error}") from None
    try:
        return _wait_for(path, num_bytes=2 * _KEY_BYTES).decode()
    except OSError as error:
        raise UserError(f"the run's key must be a file of yours; got {error}") from None


def _wait_for(path: Path, num_bytes: int = 1) -> bytes:
    deadline = time.monotonic() + _SHARED_WAIT_S
    while True:
        try:
            data = owned.read_own_file(path)
        except FileNotFoundError:
            data = b""
            if time.monotonic() > deadline:
                raise
        if len(data) >= num_bytes or time.monotonic() > deadline:
            return data
        time.sleep(0.02)


# --- what DeepSpeed exports ----------------------------------------------------------------------


def split_exported(environment: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Take out of an environment what DeepSpeed would put on command lines and need not be there.

    Returns:
        What is left for the `deepspeed` command, and what was taken out.
    """
    taken = {
        name: value
        for name, value in environment.items()
        if name.startswith(_EXPORTED) and name not in _OF_IMPORTS
    }
    left = {name: value for name, value in environment.items() if name not in taken}
    return left, taken


def exported_here(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of an environment that DeepSpeed puts on command lines."""
    return {name: value for name, value in environment.items() if name.startswith(_EXPORTED)}


def home_exports() -> Path:
    """Return the file that exports for DeepSpeed are read from.

    That is one in the user's home, or the one whose path DS_ENV_FILE holds.
    """
    named = os.environ.get("DS_ENV_FILE", _EXPORTS_AT_HOME)
    return Path(named).absolute() if "/" in named else Path(os.path.expanduser("~")) / named


def ignored_exports() -> str:
    """Return a sentence about exports in the working folder, which nobody named; or empty.

    DeepSpeed obeys them, and has their values read by a shell on every host.
    """
    path = Path.cwd() / _EXPORTS_AT_HOME
    if not path.is_file() or path == home_exports():
        return ""
    return f"Not obeyed: {path}; if it is meant, name it by DS_ENV_FILE=./{_EXPORTS_AT_HOME}"


def read_exports() -> RankVariables:
    """Return what the file of exports for DeepSpeed holds; see `home_exports`.

    DeepSpeed also puts the working folder first on PYTHONPATH, from which ranks would import any
    file named like a module; here it stays what it is.

    Raises:
        UserError: if the file is another user's.
    """
    variables = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    path = home_exports()
    if path.is_file():
        if not owned.has_trusted_owner(path):
            raise UserError(
                f"a file of exports for DeepSpeed must be your own; got {path}, "
                f"{describe_access(path.stat())}; name another by DS_ENV_FILE"
            )
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"exports for DeepSpeed must be readable text; got {error}") from None
        for line in text.splitlines():
            name, equals, value = line.partition("=")
            if equals and not name.lstrip().startswith("#"):
                variables[name.strip()] = value
    hidden = {name: value for name, value in variables.items() if is_secret_name(name)}
    shown = {name: value for name, value in variables.items() if name not in hidden}
    return RankVariables(shown, hidden)


def write_exports(folder: Path, variables: Mapping[str, str]) -> Path:
    """Write a file of exports for DeepSpeed to a log folder, and return it."""
    path = folder / EXPORTS_FILE
    path.unlink(missing_ok=True)
    owned.write_new_file(path, "".join(f"{n}={v}\n" for n, v in variables.items()).encode())
    return path
