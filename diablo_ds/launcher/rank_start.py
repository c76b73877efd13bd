"""The start of one rank, as DeepSpeed's launcher calls it: environment, master port, guard.

Only the standard library is used here: this process stays beside its rank, in a few megabytes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from diablo_ds.errors import UserError
from diablo_ds.files import modes, owned
from diablo_ds.launcher.cluster import rank_python
from diablo_ds.launcher.devices import check_devices, given_environment, put_back
from diablo_ds.launcher.guard import Guard
from diablo_ds.launcher.ports import meeting_variables
from diablo_ds.launcher.processes import describe_exit
from diablo_ds.ranks import terminal
from diablo_ds.ranks.environment import STORE_FILE, read_hidden, remove_start
from diablo_ds.ranks.exit_codes import EXIT_USER_ERROR
from diablo_ds.ranks.identity import RANK_NAMES, find_identity
from diablo_ds.ranks.masking import COMMAND, hide_secrets
from diablo_ds.ranks.records import RankRecord, announce_failure, log_file, write_record


def main(command: str = "train") -> None:
    """Run a command of `diablo-ds` with this script's arguments under guard; exit as it did."""
    terminal.make_safe()
    os.environ["PYTHONSAFEPATH"] = "1"
    own, arguments = split_options(sys.argv[1:])
    modes.share(allow_group_write=own.allow_group_write, group_readable=own.group_readable)
    python = rank_python(own.venv, own.wrap)
    guard = None
    resources = contextlib.ExitStack()
    try:
        variables = dict(e.split("=", 1) for e in own.env)
        if own.env_file is not None:
            variables |= read_hidden(own.env_file)
        environment = rank_environment(variables)
        environment.setdefault(COMMAND, _given_command(environment))
        if own.log_folder is not None:
            owned.make_folder(own.log_folder, "log folder")
        if environment.get("RANK"):
            environment |= meeting_variables(
                own.log_folder,
                find_identity(environment),
                environment,
                resources,
                is_wrapped=bool(own.wrap),
            )
        if own.venv is not None:  # DeepSpeed looks for ninja there
            environment["PATH"] = f"{own.venv / 'bin'}{os.pathsep}{environment.get('PATH', '')}"
        guard = Guard(environment, own.log_folder)
        code = guard.run([*python, "-u", "-m", "diablo_ds", command, *arguments])
    except Exception as error:
        is_reported = isinstance(error, UserError | OSError)  # anything else is a defect
        text = f"Error: {error}\n" if is_reported else traceback.format_exc()
        sys.stderr.write(text)
        code = EXIT_USER_ERROR if isinstance(error, UserError) else 1
        if own.log_folder is not None and guard is None:
            _record_refusal(own.log_folder, code, text)
    finally:
        resources.close()
        if guard is not None and guard.is_orphan:  # a killed launcher leaves its files
            remove_start(own.env_file, os.environ.get(STORE_FILE))
    sys.exit(code)


def split_options(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of a guard, and the words of its rank's command."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--log-folder", "--log_folder", type=Path)
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--env-file", type=Path)
    parser.add_argument("--venv", type=Path)
    parser.add_argument("--wrap", default="")
    parser.add_argument("--allow-group-write", "--allow_group_write", action="store_true")
    parser.add_argument("--group-readable", "--group_readable", action="store_true")
    own, arguments = parser.parse_known_args(words)
    arguments += ["--allow-group-write"] * own.allow_group_write
    arguments += ["--group-readable"] * own.group_readable
    return own, arguments


def _given_command(environment: Mapping[str, str]) -> str:
    """Return the command that started the ranks, without the options of its launcher and secrets.

    DeepSpeed's launcher adds an option, and keeps its own.
    """
    programs = {"DeepSpeed": "deepspeed", "torchrun": "torchrun"}
    program = programs.get(find_identity(environment).launcher, "python")
    words = [word for word in sys.argv if not word.startswith("--local_rank")]
    return shlex.join([program, *hide_secrets(words, environment)])


def _record_refusal(folder: Path, code: int, text: str) -> None:
    """Write down that a rank could not be started, so that no other one waits for it.

    Nothing is written where it is the folder itself that is refused.
    """
    with contextlib.suppress(ValueError, OSError):
        owned.make_folder(folder, "log folder")
        identity = find_identity(os.environ)
        now = time.time()
        with owned.append_to_own_file(log_file(folder, identity.rank)) as file:
            file.write(text.encode(errors="replace"))
        record = RankRecord(
            rank=identity.rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            world_size=identity.world_size,
            started=now,
            ended=now,
            exit_code=code,
            cause=describe_exit(code),
        )
        write_record(folder, record)
        announce_failure(folder, identity.rank)


def rank_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the rank that this process guards.

    It has torch's names for rank and world size, whichever launcher started this process, and the
    devices that the user or the scheduler gave to this host.

    Args:
        variables: what the user gave to the ranks.

    Raises:
        UserError: if the variables do not tell which rank this is, or fewer devices than ranks
            were given.
    """
    environment = {**os.environ, **variables}
    identity = find_identity(environment)
    for name in RANK_NAMES:  # set, but empty, where it is alone
        environment.pop(name, None)
    if identity.launcher:
        environment |= identity.variables()
    given = given_environment()
    given = None if given is None else {**given, **variables}
    check_devices(environment if given is None else given, identity.local_size or 1)
    return environment if given is None else put_back(environment, given)
