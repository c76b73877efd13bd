"""Training: the loop over steps, and what comes before and after. Reads from top to bottom."""

from __future__ import annotations

import contextlib
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from diablo_ds.adapter.storage import load_adapter, save_adapter
from diablo_ds.config.run import RunConfig
from diablo_ds.config.schedule import lr_factor
from diablo_ds.data.text.end_tokens import GENERATION_CONFIG_FILE
from diablo_ds.errors import NonFiniteError
from diablo_ds.files.layout import RunFolder, checkpoint_folder, list_checkpoints
from diablo_ds.ranks import distributed
from diablo_ds.ranks.heartbeat import heart
from diablo_ds.ranks.log import logger
from diablo_ds.ranks.stopping import Borders, GraceWarning, StopAgreed, Stopped, StopRequests
from diablo_ds.training.checkpoint import (
    Checkpoint,
    save_checkpoint,
)
from diablo_ds.training.metrics import Reporter, peak_memory_bytes, plot_losses
from diablo_ds.training.startup import Run, start_run
from diablo_ds.training.step import evaluate, train_step
from diablo_ds.zero.traffic import counting_traffic

EVALS_PER_RUN = 4
"""Held-out evaluations and checkpoints in a run where the config leaves their interval open."""


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    folder: Path
    steps: int
    first_heldout_loss: float | None
    last_heldout_loss: float | None

    def text(self) -> str:
        """Return the closing lines for a person: results, places, what to try next."""
        files = RunFolder(self.folder)
        lines = [f"Done: {self.steps} steps."]
        if self.first_heldout_loss is not None:
            first, last = self.first_heldout_loss, self.last_heldout_loss
            lines[0] += f" Held-out loss from {first:.4f} to {last:.4f}."
        lines += [
            f"  adapter      {files.adapter}",
            f"  checkpoint   {checkpoint_folder(files.checkpoints, self.steps)}",
            f"  TensorBoard  {files.tensorboard}",
            f"  loss curve   {files.loss_plot}",
            f"Next: diablo-ds inspect {files.adapter}",
            f"      tensorboard --logdir {files.tensorboard}",
        ]
        return "\n".join(lines)


def train(config: RunConfig, ds_config_file: Path) -> Summary:
    """Train from the run config and a DeepSpeed config file, resuming what the folder holds.

    Collective: every rank must call this.

    Raises:
        UserError: if a setting, file or folder is wrong, or the run folder is another process's;
            the same on every rank.
        NonFiniteError: if the training diverges.
        OSError: if a checkpoint cannot be written; earlier ones are kept.
        Stopped: if a signal asked for it; the last finished step is saved.
    """
    with heart.beating(), StopRequests() as requests, contextlib.ExitStack() as resources:
        return _run(start_run(config, ds_config_file, resources), requests)


def _run(run: Run, requests: StopRequests) -> Summary:
    config = run.config
    requests.start_training()
    heart.limit_s = config.hang_timeout
    reporter = Reporter(
        run.folder,
        config,
        num_steps=run.num_steps,
        start_step=run.start_step,
        enabled=distributed.is_main_process(),
        owner=run.owner,
    )
    if run.start_step == 0:
        reporter.base_dropout(run.base_dropout)
    loop = _Loop(run, reporter, requests)
    try:
        loop.run_steps()
        summary = _finish(run, reporter)
    except StopAgreed:
        raise Stopped(loop.save_and_describe()) from None
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}; {_last_checkpoint_text(run.folder)}") from None
    finally:
        reporter.close()
    return summary


class _Loop:
    """Takes steps, saves and evaluates; knows what has been finished and what has been saved."""

    def __init__(self, run: Run, reporter: Reporter, requests: StopRequests) -> None:
        self.run, self.reporter = run, reporter
        self.finished = self.saved = run.start_step
        interval = max(1, -(-run.num_steps // EVALS_PER_RUN))
        self.eval_every = run.config.eval_every or interval
        self.save_every = run.config.save_every or interval
        device, self.warning = run.engine.device, GraceWarning()
        self.train_borders = Borders(requests, device, warning=self.warning)
        self.eval_borders = Borders(requests, device)
        self.is_verified = False

    def run_steps(self) -> None:
        """Take the steps that are left. Collective: every rank must call this.

        Raises:
            StopAgreed: on all ranks together.
        """
        run = self.run
        if self._is_evaluation_due(run.start_step):
            self._report_heldout(run.start_step)
        for step in range(run.start_step, run.num_steps):
            heart.step = done = step + 1
            if step == run.start_step + 2:  # in the first two DeepSpeed still records and checks
                with counting_traffic() as traffic:
                    self._take_step(step)
                logger.info(f"Communication per step:\n{traffic.table() or '  none'}")
            else:
                self._take_step(step)
            self.finished = done
            # DeepSpeed leaves the deltas partitioned after a step that fp16 skipped.
            if not self.is_verified and run.engine.was_updated:
                run.engine.verify_placement("after the first step")
                self.is_verified = True
            # First the save, so that whatever ends an evaluation loses no step.
            if done % self.save_every == 0 or done == run.num_steps:
                self._save()
            if done % self.eval_every == 0 or done == run.num_steps:
                self._report_heldout(done)

    def save_and_describe(self) -> str:
        """Save the last finished step, unless it is, and return what to tell. Collective."""
        if self.finished > self.saved:
            self._save()
        run, folder = self.run, self.run.folder
        if not self.saved:
            return (
                "Stopped before the first step was finished; nothing had to be saved. "
                f"The same command with --output {folder} starts again."
            )
        return (
            f"Stopped after step {self.saved} of {run.num_steps}, which is saved. "
            f"The same command with --output {folder} goes on from there."
        )

    def _is_evaluation_due(self, step: int) -> bool:
        """Return whether a checkpoint was left ahead of its evaluation, or nothing was done yet."""
        if step == 0:
            return True
        is_eval_step = step % self.eval_every == 0 or step == self.run.num_steps
        return is_eval_step and not distributed.on_main_process(
            lambda: self.reporter.has_heldout(step)
        )

    def _save(self) -> None:
        start = time.perf_counter()
        save(self.run, self.finished)
        self.saved = self.finished
        self.warning.saving_s = time.perf_counter() - start

    def _report_heldout(self, step: int) -> None:
        run = self.run
        if run.heldout_batches is not None:
            batches = run.heldout_batches.heldout()
            self.reporter.heldout(step, evaluate(run.engine, batches, self.eval_borders))
        _report_norms(run, self.reporter, step)

    def _take_step(self, step: int) -> None:
        run = self.run
        config = run.config
        micro_batches = list(run.train_batches.step(step))
        factor = lr_factor(
            config.schedule, step, num_steps=run.num_steps, warmup_steps=config.warmup_steps
        )
        learning_rate = config.learning_rate * factor
        torch.manual_seed(step_seed(config.seed, step, distributed.rank()))

        start = time.perf_counter()
        try:
            result = train_step(run.engine, micro_batches, learning_rate, self.train_borders)
        except NonFiniteError as error:
            raise NonFiniteError(f"{error} in step {step + 1}") from None
        seconds = time.perf_counter() - start

        values = {
            "loss": result.loss,
            "learning_rate": learning_rate,
            "grad_norm": result.grad_norm,
            "tokens_per_s": result.num_tokens / seconds,
            "step_s": seconds,
            "memory_bytes": float(peak_memory_bytes(run.engine.device)),
        }
        if (loss_scale := run.engine.loss_scale) is not None:
            values["loss_scale"] = loss_scale
        self.reporter.step(step + 1, values)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of a step's dropout on a rank: a function, so nothing has to be saved."""
    digest = hashlib.sha256(f"{seed},{step},{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def save(run: Run, step: int) -> None:
    """Write a checkpoint. Collective: every rank must call this."""
    heart.beat("saving")
    state = run.engine.gather_state()
    checkpoint = Checkpoint(
        step=step,
        global_batch=run.config.global_batch,
        seed=run.config.seed,
        num_optimizer_steps=state.num_optimizer_steps,
        adapter=run.adapter,
        state=state.deltas,
        loss_scaler=state.scaler,
        data=run.data.as_json(),
    )

    def write() -> None:
        run.check_owner()
        save_checkpoint(RunFolder(run.folder).checkpoints, checkpoint, run.config.keep_last)

    distributed.on_main_process(write)


def _finish(run: Run, reporter: Reporter) -> Summary:
    """Write adapter, plot and closing metrics, after the last step's checkpoint was saved.

    Collective: every rank must call this.
    """

    def write() -> Summary:
        run.check_owner()
        files = RunFolder(run.folder)
        last_checkpoint = checkpoint_folder(files.checkpoints, run.num_steps)
        masters, adapter_config = load_adapter(last_checkpoint)
        beside = {GENERATION_CONFIG_FILE: run.generation_config}
        save_adapter(files.adapter, masters, adapter_config, beside)
        files.write_progress(run.num_steps, run.start_step, done=True)
        plot_losses(reporter.history, files.loss_plot)
        heldout = [p["heldout_loss"] for p in reporter.history if "heldout_loss" in p]
        first, last = (heldout[0], heldout[-1]) if heldout else (None, None)
        last_loss = next((p["loss"] for p in reversed(reporter.history) if "loss" in p), None)
        named = {"loss": last_loss, "heldout_loss": last}
        final = {name: value for name, value in named.items() if value is not None}
        reporter.close(final)
        return Summary(run.folder, run.num_steps, first, last)

    return distributed.on_main_process(write)


def _report_norms(run: Run, reporter: Reporter, step: int) -> None:
    """Record the norm of each delta. Collective: every rank must call this."""
    norms = run.engine.delta_norms()
    reporter.delta_norms(step, {name.removesuffix(".delta"): norm for name, norm in norms.items()})


def _last_checkpoint_text(folder: Path) -> str:
    found = list_checkpoints(RunFolder(folder).checkpoints)
    return f"the last good checkpoint is {found[0]}" if found else "no checkpoint was written yet"
