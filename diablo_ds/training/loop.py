"""The loop over the steps of a run: when it saves, when it evaluates, and where it stops."""

from __future__ import annotations

import hashlib
import time

import torch

from diablo_ds.config.schedule import lr_factor
from diablo_ds.errors import NonFiniteError
from diablo_ds.files.layout import RunFolder
from diablo_ds.ranks import distributed
from diablo_ds.ranks.heartbeat import heart
from diablo_ds.ranks.log import logger
from diablo_ds.ranks.stopping import Boundaries, GraceWarning, StopRequests
from diablo_ds.training.checkpoint import Checkpoint, save_checkpoint
from diablo_ds.training.exchange import Exchange
from diablo_ds.training.reports import Reports
from diablo_ds.training.startup import Run
from diablo_ds.training.step import evaluate, train_step
from diablo_ds.zero.traffic import counting_traffic

EVALS_PER_RUN = 4
"""Held-out evaluations and checkpoints in a run where the config leaves their interval open."""


class Loop:
    """Takes steps, saves and evaluates; knows what has been finished and what has been saved."""

    def __init__(self, run: Run, reports: Reports, requests: StopRequests) -> None:
        self.run, self.reports = run, reports
        self.finished = self.saved = run.start_step
        interval = max(1, -(-run.num_steps // EVALS_PER_RUN))
        self.eval_every = run.run_config.eval_every or interval
        self.save_every = run.run_config.save_every or interval
        device, self.warning = run.engine.device, GraceWarning()
        self.training = Boundaries(requests, device, warning=self.warning)
        self.evaluation = Boundaries(requests, device)
        self.exchange = Exchange(
            run.train_batches,
            self.training,
            num_steps=run.num_steps,
            failure=lambda: reports.error,
        )
        self.is_verified = False

    def run_steps(self) -> None:
        """Take the steps that are left. Collective: every rank must call this.

        Raises:
            StopAgreed: on all ranks together.
            UserError, OSError: what failed on one rank, on all of them.
        """
        run = self.run
        self.exchange.open(run.start_step)
        self.exchange.check()
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
            self.exchange.check()
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
            f"The same command with --output {folder} continues from there."
        )

    def _is_evaluation_due(self, step: int) -> bool:
        """Return whether a checkpoint was left ahead of its evaluation, or nothing was done yet."""
        if step == 0:
            return True
        is_eval_step = step % self.eval_every == 0 or step == self.run.num_steps
        return is_eval_step and not self.reports.has_heldout(step)

    def _save(self) -> None:
        start = time.perf_counter()
        save(self.run, self.finished)
        self.saved = self.finished
        self.warning.saving_s = time.perf_counter() - start

    def _report_heldout(self, step: int) -> None:
        run = self.run
        if run.heldout_batches is not None:
            batches = run.heldout_batches.heldout()
            loss = evaluate(run.engine, batches, self.evaluation)
            self.reports.write(lambda reporter: reporter.heldout(step, loss))
        norms = run.engine.delta_norms()
        self.reports.write(lambda reporter: reporter.delta_norms(step, norms))

    def _take_step(self, step: int) -> None:
        run = self.run
        config = run.run_config
        factor = lr_factor(
            config.schedule, step, num_steps=run.num_steps, warmup_steps=config.warmup_steps
        )
        learning_rate = config.learning_rate * factor
        torch.manual_seed(step_seed(config.seed, step, distributed.rank()))

        start = time.perf_counter()
        try:
            result = train_step(
                run.engine,
                self.exchange.micro_batches,
                learning_rate,
                totals=self.exchange.totals,
                boundaries=self.training,
                message=self.exchange.message,
            )
        except NonFiniteError as error:
            raise NonFiniteError(f"{error} in step {step + 1}") from None
        self.exchange.receive(result.messages)
        seconds = time.perf_counter() - start

        values = {
            "loss": result.loss,
            "learning_rate": learning_rate,
            "grad_norm": result.grad_norm,
            "tokens_per_s": result.num_tokens / seconds,
            "step_s": seconds,
            "memory_bytes": float(run.engine.peak_memory_bytes),
        }
        if (loss_scale := run.engine.loss_scale) is not None:
            values["loss_scale"] = loss_scale
        self.reports.write(lambda reporter: reporter.step(step + 1, values))


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
        global_batch=run.run_config.global_batch,
        seed=run.run_config.seed,
        num_optimizer_steps=state.num_optimizer_steps,
        adapter=run.adapter,
        state=state.deltas,
        loss_scaler=state.scaler,
        data=run.data.as_json(),
    )

    def write() -> None:
        run.check_owner()
        save_checkpoint(RunFolder(run.folder).checkpoints, checkpoint, run.run_config.keep_last)

    distributed.on_main_process(write)
