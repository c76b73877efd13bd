"""The command `diablo-ds evaluate`: models against tasks, side by side."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

import click

from diablo_ds.cli.console import CONTEXT, clean_errors, echo
from diablo_ds.cli.options import (
    GroupedCommand,
    from_options,
    options_of,
    remote_code_option,
    sharing_options,
)
from diablo_ds.cli.same_command import given_command
from diablo_ds.evaluation.options import EvaluateOptions
from diablo_ds.launcher.devices import check_devices
from diablo_ds.launcher.start_command import start_command
from diablo_ds.ranks.exit_codes import EXIT_STOPPED
from diablo_ds.ranks.heartbeat import DESCRIPTOR, heart
from diablo_ds.ranks.identity import announce


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@sharing_options
@remote_code_option
@options_of(EvaluateOptions)
@click.option("--local-rank", type=int, hidden=True, help="Set by DeepSpeed's launcher; not used.")
def evaluate(local_rank: int | None, **values: Any) -> None:
    """Evaluate a base and its adapters side by side: accuracy, code, refusals, loss.

    The same command continues an evaluation that was interrupted. Several ranks are started by
    `deepspeed launch/evaluate.py`, with the same options.
    """
    with clean_errors():
        options = from_options(EvaluateOptions, values)
        identity = announce()
        check_devices(os.environ, identity.local_size or 1)
        for number in _ALSO_STOP:
            signal.signal(number, _stop)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a script's background
            signal.signal(signal.SIGINT, _stop)
        heart.tell_ready("evaluating")
        try:
            from diablo_ds.evaluation.runner import evaluate as run
            from diablo_ds.evaluation.runner import start_ranks

            start_ranks(options)
            echo(run(options))
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            is_started = bool(identity.launcher) and DESCRIPTOR in os.environ
            command = start_command(os.environ, "") if is_started else given_command()
            echo(f"\nStopped; all answers so far are kept, and this continues:\n  {command}")
            sys.exit(EXIT_STOPPED)


_ALSO_STOP = (signal.SIGTERM, signal.SIGUSR1)


def _stop(number: int, frame: FrameType | None) -> None:
    """Take a request to stop for a control-C.

    DeepSpeed's launcher sends its ranks a SIGTERM after the control-C that they have got already.
    """
    for other in _ALSO_STOP:
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt
