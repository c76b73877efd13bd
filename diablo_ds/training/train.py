"""Training, from the run config to the adapter: start, loop over steps, end."""

from __future__ import annotations

import contextlib
import functools
import socket
from pathlib import Path

from diablo_ds.config.run import RunConfig
from diablo_ds.errors import NonFiniteError, UserError
from diablo_ds.files.layout import RunFolder, list_checkpoints
from diablo_ds.ranks import distributed
from diablo_ds.ranks.heartbeat import heart
from diablo_ds.ranks.stopping import StopAgreed, Stopped, StopRequests
from diablo_ds.training.finishing import Summary, finish
from diablo_ds.training.loop import Loop
from diablo_ds.training.metrics import Reporter
from diablo_ds.training.reports import Reports
from diablo_ds.training.run_events import describe_failed, find_cause
from diablo_ds.training.screen import showing_phases
from diablo_ds.training.startup import Run, start_run
from diablo_ds.training.tracking_start import open_tracking

CAUSE_WAIT_S = 2.0
"""How long a rank that fell to another one waits for the record of its end; guards give it 5 s."""


def train(run_config: RunConfig, ds_config_file: Path, given_file: Path | None = None) -> Summary:
    """Train from the run config and a DeepSpeed config file, resuming what the folder holds.

    Collective: every rank must call this.

    Args:
        run_config: the run config.
        ds_config_file: DeepSpeed config file.
        given_file: the file of settings that a person gave, which the run folder gets a copy of.

    Raises:
        UserError: if a setting, file or folder is wrong, or the run folder is another process's;
            the same on every rank.
        NonFiniteError: if the training diverges.
        OSError: if a checkpoint cannot be written; earlier ones are kept.
        Stopped: if a signal asked for it; the last finished step is saved.
    """
    with heart.beating(), StopRequests() as requests, contextlib.ExitStack() as resources:
        with showing_phases():
            run = start_run(run_config, ds_config_file, resources, given_file=given_file)
        return _run(run, requests)


def _run(run: Run, requests: StopRequests) -> Summary:
    config = run.run_config
    requests.start_training()
    heart.limit_s = config.hang_timeout
    reports = Reports(
        lambda: Reporter(
            run.folder,
            config,
            num_steps=run.num_steps,
            start_step=run.start_step,
            owner=run.owner,
            tracking=open_tracking(run),
            num_gpus=distributed.world_size() if run.engine.device.type == "cuda" else 0,
        )
    )
    if run.start_step == 0:
        reports.write(lambda reporter: reporter.base_dropout(run.base_dropout))
    loop = Loop(run, reports, requests)
    try:
        loop.run_steps()
        summary = finish(run, reports, loop.finished, loop.evaluations)
    except StopAgreed:
        ending = loop.save_and_describe()
        reports.write(lambda reporter: reporter.ended(loop.finished, "stopped, as asked"))
        raise Stopped(ending) from None
    except Exception as error:
        told = functools.partial(_describe_fault, run, error)
        reports.write(lambda reporter: reporter.ended(loop.finished, told()))
        if isinstance(error, NonFiniteError):
            raise NonFiniteError(f"{error}; {_last_checkpoint_text(run.folder)}") from None
        raise
    finally:
        loop.exchange.close()
        loop.trace.close()
        reports.write(lambda reporter: reporter.close())
    return summary


def _describe_fault(run: Run, error: Exception) -> str:
    """Return on one line what ends the run before it is done; to be called on rank 0.

    An error in a collective is most likely another rank's, whose guard knows more of it.
    """
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, UserError | OSError | NonFiniteError):  # the same on all ranks
        return f"failed, in {heart.where}: {text}"
    cause = None
    if distributed.world_size() > 1:
        with contextlib.suppress(OSError):
            logs = RunFolder(run.folder).logs
            cause = find_cause(logs, distributed.rank(), wait_s=CAUSE_WAIT_S)
    if cause is not None:
        return describe_failed(cause)
    return f"rank {distributed.rank()} on {socket.gethostname()} failed, in {heart.where}: {text}"


def _last_checkpoint_text(folder: Path) -> str:
    found = list_checkpoints(RunFolder(folder).checkpoints)
    return f"the last good checkpoint is {found[0]}" if found else "no checkpoint was written yet"
