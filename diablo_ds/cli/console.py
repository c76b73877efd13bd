"""What every command shares: option names, output on rank 0, errors without traceback."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from diablo_ds.cli.user_folders import check_user_folders, torch_kept_out_of_tmp
from diablo_ds.errors import UserError, is_reported
from diablo_ds.files import modes
from diablo_ds.files.shown_text import shown
from diablo_ds.ranks import terminal
from diablo_ds.ranks.exit_codes import EXIT_PORT_IN_USE, EXIT_USER_ERROR
from diablo_ds.ranks.identity import IdentityError, is_announced

CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    # Underscores and dashes are the same: --ds_config is what DeepSpeed users type.
    "token_normalize_func": lambda token: token.replace("_", "-"),
}


def run_command(command: click.Command) -> None:
    """Run a command as this process, and exit with its exit code.

    A rank exits without shutting the interpreter down: with gloo's threads alive that aborts
    about one time in ten, after everything was written.
    """
    terminal.make_safe()
    modes.set_umask()
    # Of any Python that is started from here, such as a library's worker, none imports what lies in
    # the working folder.
    os.environ["PYTHONSAFEPATH"] = "1"
    # Kernels of the hub are code that models and their configs ask for: transformers is to find no
    # package that fetches them.
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
    share_cores()
    with torch_kept_out_of_tmp():
        try:
            command()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
    if terminal.lost_reader():
        terminal.discard_output()  # what is buffered cannot be written any more
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


_SPINS = "20000"
"""Iterations for which a thread of GNU's OpenMP spins. On a quiet machine products take as long
with it as by default, on a busy one less."""


def share_cores() -> None:
    """Let waiting threads give up their core soon, unless the user has chosen otherwise.

    By default OpenMP's threads spin for long. Where another program wants the core, that keeps
    it from the very thread that they wait for.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def echo(text: str) -> None:
    """Print a result, on rank 0 of a run."""
    if _is_main_process():
        click.echo(text)


class clean_errors:  # noqa: N801 - reads as a statement
    """Turn a user's mistake into a message without traceback, on rank 0, and an exit code."""

    def __enter__(self) -> None:
        """Exit where a variable names what cannot be a folder of the user's."""
        try:
            check_user_folders(os.environ)
        except UserError as error:
            echo_error(str(error))
            sys.exit(EXIT_USER_ERROR)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: Any
    ) -> None:
        """Replace errors that a user can act on by a message; the others keep their traceback.

        Where the reader of the output, such as head, has seen enough, the command ends quietly.
        """
        if isinstance(error, BrokenPipeError) and terminal.lost_reader():
            terminal.discard_output()
            sys.exit(0)
        if error is not None and is_reported(error):
            # Nothing tells which one is rank 0, or rank 0 is a stranger's, who says nothing.
            if isinstance(error, IdentityError) or _is_of(error, "StrangerError"):
                click.echo(f"Error: {shown(str(error))}", err=True)
            else:
                echo_error(str(error))
            # A full disk may have room the next time; a wrong setting stays wrong.
            code = 1 if isinstance(error, OSError) else EXIT_USER_ERROR
            sys.exit(EXIT_PORT_IN_USE if _is_of(error, "PortInUseError") else code)


def _is_of(error: BaseException, name: str) -> bool:
    """Return whether an error is of a class that would take torch to import."""
    return any(cls.__name__ == name for cls in type(error).__mro__)


def echo_error(text: str) -> None:
    """Print an error to stderr, on rank 0 of a run."""
    if _is_main_process():
        click.echo(f"Error: {shown(text)}", err=True)


def _is_main_process() -> bool:
    """Return whether this is rank 0, or a command that has no ranks."""
    return not is_announced() or os.environ.get("RANK") == "0"
