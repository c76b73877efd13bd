"""The loop over the steps of a run: when it saves, when it evaluates, and where it stops."""

from __future__ import annotations

import hashlib
import time
from functools import partial

import torch

from diablo_ds.config.schedule import learning_rate
from diablo_ds.errors import NonFiniteError
from diablo_ds.ranks import distributed
from diablo_ds.ranks.heartbeat import heart
from diablo_ds.ranks.log import logger
from diablo_ds.ranks.progress import Progress
from diablo_ds.ranks.stopping import Boundaries, GraceWarning, StopRequests
from diablo_ds.training.evaluations import interval
from diablo_ds.training.exchange import Exchange
from diablo_ds.training.metrics import Reporter
from diablo_ds.training.profiling import StepTrace
from diablo_ds.training.reports import Reports
from diablo_ds.training.samples import Samples
from diablo_ds.training.saving import save, with_intact_best
from diablo_ds.training.startup import Run
from diablo_ds.training.step import evaluate, train_step
from diablo_ds.training.step_clock import EVALUATION, SAVING, STEP, TASKS, StepClock
from diablo_ds.training.task_scores import open_task_scores
from diablo_ds.training.utilization import find_utilization
from diablo_ds.zero.traffic import Traffic, counting_traffic


class Loop:
    """Takes steps, saves and evaluates; knows what has been finished and what has been saved.

    A step is saved ahead of its evaluation, so that whatever ends an evaluation loses no step; the
    checkpoint then remembers the evaluations before it. A process that continues from it counts the
    evaluation of its step again, from the metrics or by evaluating. The best of them is removed
    only after a checkpoint was written that remembers a better one; so a last step that its
    evaluation finds to be the best is saved again.
    """

    def __init__(self, run: Run, reports: Reports, requests: StopRequests) -> None:
        self.run, self.reports = run, reports
        self.finished = run.start_step
        self.saved = run.start_step if run.has_checkpoint else -1
        self.evaluations = run.evaluations
        self.saved_best = run.evaluations.best_step
        self.eval_every = interval(run.run_config.eval_every, run.num_steps)
        self.save_every = interval(run.run_config.save_every, run.num_steps)
        self.eval_task_every = interval(run.run_config.eval_task_every, run.num_steps)
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
        self.task_scores = open_task_scores(
            run.tasks,
            run.engine,
            lambda: bool(requests.signal_name),
            weak_sandbox=run.run_config.weak_sandbox,
        )
        self.samples = None
        if run.run_config.sample_prompts:
            self.samples = Samples(run, lambda: bool(requests.signal_name))
        self.utilization = find_utilization(
            run.engine.module, device, run.run_config.precision, distributed.world_size()
        )
        self.clock = StepClock()
        self.trace = StepTrace(run.run_config.profile_steps, run.folder)
        self.traffic = Traffic()
        # Not known where an older version began the run.
        self.tokens_seen = reports.history.tokens_seen if run.start_step else 0.0

    def run_steps(self) -> None:
        """Take the steps that are left, or as many as patience lasts for.

        Collective: every rank must call this.

        Raises:
            StopAgreed: on all ranks together.
            UserError, OSError: what failed on one rank, on all of them.
        """
        with counting_traffic() as self.traffic:
            self._run_steps()

    def _run_steps(self) -> None:
        run = self.run
        self.exchange.open(run.start_step)
        self.exchange.check()
        self._begin()
        for step in range(run.start_step, run.num_steps):
            if self.is_out_of_patience:
                break
            heart.step = done = step + 1
            self.take_step(step)
            if step == run.start_step + 2:  # in the first two DeepSpeed still records and checks
                logger.info(f"Communication per step:\n{self.traffic.table()}")
            self.finished = done
            # DeepSpeed leaves the deltas partitioned after a step that fp16 skipped.
            if not self.is_verified and run.engine.was_updated:
                run.engine.verify_placement("after the first step")
                self.is_verified = True
            if done % self.save_every == 0 or done == run.num_steps:
                self._save()
            self.exchange.check()
            if self._is_evaluated(done):
                self._evaluate(done)
            self._score_tasks(done)
        if self.is_out_of_patience:
            self._stop_early()
        if run.run_config.keep_best and self.saved_best != self.evaluations.best_step:
            self._save()
        seconds = self.clock.finish_step()  # no step follows that would tell of them
        del seconds[STEP]
        self.reports.write(lambda reporter: reporter.times(self.finished, seconds))

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the run stops before its last step; the same on all ranks."""
        patience = self.run.run_config.patience
        has_run_out = 0 < patience <= self.evaluations.num_without_better
        return has_run_out and self.finished < self.run.num_steps

    def save_and_describe(self) -> str:
        """Save the last finished step, unless it is, and return what to tell. Collective."""
        if self.finished > max(self.saved, 0):
            self._save()
        run, folder = self.run, self.run.folder
        if self.saved < 1:
            return (
                "Stopped before the first step was finished; nothing had to be saved. "
                f"The same command with --output {folder} starts again."
            )
        return (
            f"Stopped after step {self.saved} of {run.num_steps}, which is saved. "
            f"The same command with --output {folder} continues from there."
        )

    def _begin(self) -> None:
        """Save and evaluate what the run starts from, where that was not done before it ended."""
        run, step = self.run, self.finished
        needs_start = bool(run.run_config.keep_best or run.run_config.init_adapter)
        if step == 0 and needs_start and self.saved < 0:
            self._save()
        if self.evaluations.last_step != step:
            is_known = step > 0 and not run.has_other_heldout
            loss = self.reports.heldout_loss(step) if is_known else None
            if loss is not None:  # also where evaluations were at other steps before
                self.evaluations = self.evaluations.including(step, loss)
            elif self._is_evaluated(step):
                self._evaluate(step)
        self._score_tasks(step)
        if run.run_config.keep_best and run.has_checkpoint:
            self.evaluations = with_intact_best(run, self.evaluations)

    def _is_evaluated(self, step: int) -> bool:
        return step % self.eval_every == 0 or step == self.run.num_steps

    def _evaluate(self, step: int) -> None:
        """Evaluate, and report it: what drawing and writing take is no part of a step either."""
        run = self.run
        with self.clock.apart(EVALUATION):
            if run.heldout_batches is not None:
                source = run.heldout_batches
                what, total = f"Step {step}/{run.num_steps}: evaluation", source.num_heldout_batches
                with _progress(what, total, "batches") as progress:
                    loss = evaluate(run.engine, progress.over(source.heldout()), self.evaluation)
                evaluations = self.evaluations = self.evaluations.including(step, loss)
                self.reports.write(lambda reporter: reporter.heldout(step, loss, evaluations))
                if run.run_config.keep_best and evaluations.best_step == step != self.saved:
                    self._save()
            norms = run.engine.delta_norms()
            self.reports.write(lambda reporter: reporter.delta_norms(step, norms))
            if self.samples is not None:
                table = self.samples.table()
                self.reports.write(lambda reporter: reporter.samples(step, table))

    def _score_tasks(self, step: int, *, is_last: bool = False) -> None:
        """Ask the tasks that are due after a step and have no scores of it yet."""
        scores, num_steps = self.task_scores, self.run.num_steps
        is_due = step % self.eval_task_every == 0 or step == num_steps or is_last
        if scores is None or not is_due:
            return
        known = self.reports.scored_tasks(step)
        for given in scores.inputs:
            name = given.task.name
            if name not in known:
                what, total = f"Step {step}/{num_steps}: task {name}", len(given.items)
                with self.clock.apart(TASKS), _progress(what, total, "answers") as progress:
                    found, seconds = scores.score(given, progress.reach)
                record = partial(Reporter.task, step=step, name=name, scores=found, seconds=seconds)
                self.reports.write(record)

    def _stop_early(self) -> None:
        if self.saved < self.finished:
            self._save()
        self._score_tasks(self.finished, is_last=True)
        self.reports.write(lambda reporter: reporter.stopped_early(self.finished, self.evaluations))

    def _save(self) -> None:
        start = time.perf_counter()
        with self.clock.apart(SAVING):
            save(self.run, self.finished, self.evaluations)
        self.saved, self.saved_best = self.finished, self.evaluations.best_step
        self.warning.saving_s = time.perf_counter() - start

    def take_step(self, step: int) -> None:
        """Take a step, counted from 0, and report it. Collective: every rank must call this."""
        run = self.run
        config = run.run_config
        rate = learning_rate(config, step, run.num_steps)
        torch.manual_seed(step_seed(config.seed, step, distributed.rank()))

        self.exchange.read_ahead()
        totals = self.exchange.totals
        self.traffic.clear()
        try:
            with self.trace.step(step + 1):
                result = train_step(
                    run.engine,
                    self.exchange.micro_batches,
                    rate,
                    totals=totals,
                    boundaries=self.training,
                    message=self.exchange.message,
                )
        except NonFiniteError as error:
            raise NonFiniteError(f"{error} in step {step + 1}") from None
        self.exchange.receive(result.messages)
        seconds = self.clock.finish_step()
        wait_s, self.exchange.wait_s = self.exchange.wait_s, 0.0

        values = {
            "loss": result.loss,
            "learning_rate": rate,
            "grad_norm": result.grad_norm,
            "tokens_per_s": result.num_tokens / seconds[STEP],
            "wait_s": wait_s,
            **seconds,
            "memory_bytes": float(run.engine.memory.peak),
            "memory_now_bytes": float(run.engine.memory.now),
            "examples_seen": float(run.train_batches.examples_after(step + 1)),
        }
        if (epoch := run.train_batches.epochs_after(step + 1)) is not None:
            values["epoch"] = epoch
        if self.tokens_seen is not None:
            values["tokens_seen"] = self.tokens_seen = self.tokens_seen + result.num_tokens
        if self.utilization is not None:
            values["mfu"] = self.utilization.mfu(totals, seconds[STEP])
        if (loss_scale := run.engine.loss_scale) is not None:
            values["loss_scale"] = loss_scale
        self.reports.write(lambda reporter: reporter.step(step + 1, values, self.traffic.by_kind()))


def _progress(what: str, total: int, unit: str) -> Progress:
    return Progress(what, total, unit, is_shown=distributed.is_main_process())


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of a step's dropout on a rank: a function, so nothing has to be saved."""
    digest = hashlib.sha256(f"{seed},{step},{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
