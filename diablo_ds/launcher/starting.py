"""What a start of the `deepspeed` command needs around it: variables that nobody sees, a store."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diablo_ds.config.run import RunConfig
from diablo_ds.files.trees import check_temporary_folder
from diablo_ds.launcher.cluster import SSH_RUNNERS, Cluster
from diablo_ds.launcher.deepspeed_command import build_command, launcher_env
from diablo_ds.launcher.launcher_output import say
from diablo_ds.launcher.quoting import bash_word, pdsh_export
from diablo_ds.ranks.environment import (
    RUN_KEY,
    STORE_FILE,
    exported_here,
    ignored_exports,
    new_key,
    read_exports,
    shared_key,
    split_exported,
    write_exports,
    write_hidden,
)
from diablo_ds.ranks.masking import COMMAND
from diablo_ds.training.run_folder import recorded_config


@dataclass(frozen=True)
class Start:
    """A command, ready to be started."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    """The full environment of the command; some of it must not be shown."""
    shown_environment: Mapping[str, str]
    """What it adds to this process's environment and may be shown."""
    hidden_file: Path | None = None
    """The file with the variables that ranks on other hosts read."""


@contextlib.contextmanager
def prepared_start(
    run_config: RunConfig, ds_config: Path, cluster: Cluster, folder: Path
) -> Iterator[Start]:
    """Yield a start; what was written for it is removed when the block ends.

    Args:
        run_config: the run config.
        ds_config: DeepSpeed config file.
        cluster: where the run goes.
        folder: the log folder, shared by all hosts.

    Raises:
        UserError: if the run and the cluster do not go together.
    """
    environment: dict[str, str] = dict(os.environ)
    hidden_file = exports_file = None
    with contextlib.ExitStack() as stack:
        if cluster.runner in (*SSH_RUNNERS, "slurm"):
            environment, taken = split_exported(environment)
            if sentence := ignored_exports():
                say(sentence)
            exports = read_exports()
            exported = exports.shown
            if cluster.runner == "pdsh":  # a file's values come after those of the environment
                exported = {**exported_here(environment), **exported}
                exported = {name: pdsh_export(value) for name, value in exported.items()}
            exports_file = write_exports(folder, exported)
            given = {name: os.environ[name] for name in (COMMAND,) if name in os.environ}
            own = {**given, RUN_KEY: new_key()}
            hidden = {**taken, **exports.hidden, **cluster.hidden_env, **own}
            hidden_file = write_hidden(folder, hidden)
            stack.callback(hidden_file.unlink, missing_ok=True)
        else:
            is_local = cluster.runner == "local"
            key = new_key() if is_local else shared_key(folder)
            environment |= {**cluster.hidden_env, RUN_KEY: key}
            if is_local and not cluster.wrap:  # containers may each have a /tmp of their own
                check_temporary_folder()
                store = stack.enter_context(tempfile.TemporaryDirectory(prefix="diablo-ds-"))
                environment |= {STORE_FILE: str(Path(store) / "store")}
        command = build_command(
            run_config,
            ds_config,
            cluster,
            folder,
            hidden_file=hidden_file,
            recorded=recorded_config(run_config.output),
        )
        if cluster.runner == "pdsh":
            check_temporary_folder()
            programs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="diablo-ds-")))
            write_harmless_pdsh(programs, environment.get("PATH", os.defpath))
            environment["PATH"] = f"{programs}{os.pathsep}{environment.get('PATH', os.defpath)}"
        shown = launcher_env(cluster, exports_file)
        yield Start(command, {**environment, **shown}, shown, hidden_file)


_HARMLESS_PDSH = """#!/bin/sh
# DeepSpeed's launcher, ended by a signal, has pdsh end all of this user's runs on the hosts.
for word in "$@"; do
    case "$word" in "pkill -f"*) exit 0 ;; esac
done
exec {pdsh} "$@"
"""


def write_harmless_pdsh(folder: Path, search_path: str) -> None:
    """Write a program `pdsh` that does all that the real one does, but for `pkill -f`.

    Guards see by themselves that their launcher is gone, and end the ranks of this run alone.

    Args:
        folder: of this user, where programs can be run.
        search_path: where the real one is found; nothing is written where there is none.
    """
    if found := shutil.which("pdsh", path=search_path):
        program = folder / "pdsh"
        program.write_text(_HARMLESS_PDSH.format(pdsh=bash_word(os.path.abspath(found))))
        program.chmod(0o700)
