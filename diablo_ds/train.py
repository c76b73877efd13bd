"""Training: the step, the loop, and what comes before and after. Reads from top to bottom."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from diablo_ds import adapter, distributed, engine, optimizer_state
from diablo_ds.attention import attends_by_variable_length
from diablo_ds.batches import MicroBatch, to_device
from diablo_ds.checkpoint import (
    Checkpoint,
    checkpoint_folder,
    list_checkpoints,
    save_checkpoint,
)
from diablo_ds.config import RunConfig
from diablo_ds.end_tokens import GENERATION_CONFIG_FILE
from diablo_ds.heartbeat import heart
from diablo_ds.loss import LossHead, causal_lm_loss, count_targets
from diablo_ds.metrics import Reporter, logger, peak_memory_bytes, plot_losses
from diablo_ds.run_folder import checkpoints_folder
from diablo_ds.schedule import lr_factor
from diablo_ds.startup import Run, start_run
from diablo_ds.stopping import Stopped, StopRequests
from diablo_ds.traffic import counting_traffic

EVALS_PER_RUN = 4
"""Held-out evaluations and checkpoints in a run where the config leaves their interval open."""


class NonFiniteError(RuntimeError):
    """A loss or gradient norm was infinite or not a number; the run cannot go on."""


class StepResult(NamedTuple):
    """What one optimizer step did, the same on every rank."""

    loss: float
    """Mean loss per target token of the global batch, in nats, before the update."""
    grad_norm: float
    """Norm over all delta gradients, before clipping."""
    num_tokens: int
    """Tokens put through the model over all ranks, without padding."""


# --- one step ------------------------------------------------------------------------------------


def train_step(
    ds_engine: Any,
    deltas: Mapping[str, nn.Parameter],
    micro_batches: Sequence[MicroBatch],
    learning_rate: float,
) -> StepResult:
    """Update the deltas once.

    The loss is summed over target tokens and divided once, by their number in the global batch;
    DeepSpeed averages gradients over ranks, which the factor world size undoes.

    Collective: every rank must call this with the same number of micro batches.

    Raises:
        NonFiniteError: if the loss is not finite on some rank, before anything is updated, or the
            gradient norm is not finite, after it.
    """
    device = ds_engine.device
    num_targets = sum(int(count_targets(batch.labels)) for batch in micro_batches)
    num_tokens = sum(batch.num_tokens for batch in micro_batches)
    counts = distributed.gather_floats([num_targets, num_tokens], device)
    global_targets, global_tokens = (int(sum(column)) for column in zip(*counts, strict=True))
    scale = distributed.world_size() / max(1, global_targets)

    loss_sum = torch.zeros((), device=device)
    with engine.one_gradient_reduction(ds_engine):
        for batch in micro_batches:
            heart.beat("forward")
            loss = _loss(ds_engine, batch)
            heart.beat("backward")
            ds_engine.backward(loss * scale)
            loss_sum += loss.detach()
    loss_sums = [row[0] for row in distributed.gather_floats([float(loss_sum)], device)]
    _check_finite("loss", loss_sums)

    heart.beat("update")
    grad_norm = engine.optimizer_step(ds_engine, deltas, learning_rate)
    if not ds_engine.fp16_enabled():  # there DeepSpeed skips the update and lowers the loss scale
        _check_finite("gradient norm", [grad_norm])
    return StepResult(sum(loss_sums) / max(1, global_targets), grad_norm, global_tokens)


def _loss(ds_engine: Any, batch: MicroBatch) -> torch.Tensor:
    """Return the summed loss of a micro batch, which is on the CPU, as ``[]`` in fp32."""
    model, device = ds_engine.module, ds_engine.device
    if batch.position_ids is not None and attends_by_variable_length(model):
        batch = batch.as_one_row()
        inputs = batch.variable_length_inputs()
    else:
        inputs = batch.model_inputs()
    inputs = to_device(inputs, device)
    head = model.get_output_embeddings()
    if isinstance(head, LossHead):
        with head.computing_loss(batch.labels):
            loss: torch.Tensor = ds_engine(**inputs).logits
            return loss
    logits = ds_engine(**inputs).logits  # [micro_batch, seq, vocab]
    return causal_lm_loss(logits, batch.labels.to(device))


def _check_finite(what: str, values: Sequence[float]) -> None:
    for rank, value in enumerate(values):
        if not math.isfinite(value):
            where = f" on rank {rank}" if len(values) > 1 else ""
            raise NonFiniteError(f"{what} must be finite; got {what}={value}{where}")


@torch.no_grad()
def evaluate(ds_engine: Any, micro_batches: Iterable[MicroBatch]) -> float:
    """Return the mean loss per target token over all ranks, in nats.

    Collective: every rank must call this with the same number of micro batches.
    """
    device = ds_engine.device
    loss_sum, num_targets = torch.zeros((), device=device), 0
    with engine.evaluating(ds_engine):
        for batch in micro_batches:
            heart.beat("evaluation")
            num_targets += int(count_targets(batch.labels))
            loss_sum += _loss(ds_engine, batch)
    rows = distributed.gather_floats([float(loss_sum), num_targets], device)
    total_loss, total_targets = (sum(column) for column in zip(*rows, strict=True))
    return float(total_loss / max(1.0, total_targets))


# --- the run -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    folder: Path
    steps: int
    first_heldout_loss: float | None
    last_heldout_loss: float | None

    def text(self) -> str:
        """Return the closing lines for a person: results, places, what to try next."""
        lines = [f"Done: {self.steps} steps."]
        if self.first_heldout_loss is not None:
            first, last = self.first_heldout_loss, self.last_heldout_loss
            lines[0] += f" Held-out loss from {first:.4f} to {last:.4f}."
        lines += [
            f"  adapter      {self.folder / 'adapter'}",
            f"  checkpoint   {checkpoint_folder(checkpoints_folder(self.folder), self.steps)}",
            f"  TensorBoard  {self.folder / 'tensorboard'}",
            f"  loss curve   {self.folder / 'loss.png'}",
            f"Next: diablo-ds inspect {self.folder / 'adapter'}",
            f"      tensorboard --logdir {self.folder / 'tensorboard'}",
        ]
        return "\n".join(lines)


def train(config: RunConfig, ds_config_file: Path) -> Summary:
    """Train from the run config and a DeepSpeed config file, resuming what the folder holds.

    Collective: every rank must call this.

    Raises:
        ValueError: if a setting, file or folder is wrong, or the run folder is another process's;
            the same on every rank.
        NonFiniteError: if the training diverges.
        OSError: if a checkpoint cannot be written; earlier ones are kept.
        Stopped: if a signal asked for it; the last step taken is saved.
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
    interval = max(1, -(-run.num_steps // EVALS_PER_RUN))
    eval_every, save_every = config.eval_every or interval, config.save_every or interval

    def report_heldout(step: int) -> None:
        if run.heldout_batches is not None:
            loss = evaluate(run.engine, run.heldout_batches.heldout())
            reporter.heldout(step, loss)
        _report_norms(run, reporter, step)

    verified = False
    try:
        if run.start_step == 0:
            report_heldout(0)
        for step in range(run.start_step, run.num_steps):
            heart.step = done = step + 1
            if step == run.start_step + 2:  # in the first two DeepSpeed still records and checks
                with counting_traffic() as traffic:
                    _take_step(run, reporter, step)
                logger.info(f"Communication per step:\n{traffic.table() or '  none'}")
            else:
                _take_step(run, reporter, step)
            # DeepSpeed leaves the deltas partitioned after a step that fp16 skipped.
            if not verified and run.engine.was_step_applied():
                run.verify_placement("after the first step")
                verified = True
            if done % eval_every == 0 or done == run.num_steps:
                report_heldout(done)
            must_stop = done < run.num_steps and requests.agreed(run.engine.device)
            if must_stop or done % save_every == 0 or done == run.num_steps:
                save(run, done)
            if must_stop:
                raise Stopped(
                    f"Stopped after step {done} of {run.num_steps}, which is saved. "
                    f"The same command with --output {run.folder} goes on from there."
                )
        summary = _finish(run, reporter)
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}; {_last_checkpoint_text(run.folder)}") from None
    finally:
        reporter.close()
    return summary


def _take_step(run: Run, reporter: Reporter, step: int) -> None:
    config = run.config
    micro_batches = list(run.train_batches.step(step))
    factor = lr_factor(
        config.schedule, step, num_steps=run.num_steps, warmup_steps=config.warmup_steps
    )
    learning_rate = config.learning_rate * factor
    torch.manual_seed(step_seed(config.seed, step, distributed.rank()))

    start = time.perf_counter()
    try:
        result = train_step(run.engine, run.deltas, micro_batches, learning_rate)
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
    if run.engine.fp16_enabled():
        values["loss_scale"] = float(run.engine.optimizer.loss_scale)
    reporter.step(step + 1, values)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of a step's dropout on a rank: a function, so nothing has to be saved."""
    digest = hashlib.sha256(f"{seed},{step},{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def save(run: Run, step: int) -> None:
    """Write a checkpoint. Collective: every rank must call this."""
    heart.beat("saving")
    state = optimizer_state.gather_state(run.engine, run.deltas)
    checkpoint = Checkpoint(
        step=step,
        global_batch=run.config.global_batch,
        seed=run.config.seed,
        num_optimizer_steps=optimizer_state.num_optimizer_steps(run.engine),
        adapter=run.adapter,
        state=state,
        loss_scaler=optimizer_state.loss_scaler_state(run.engine),
        data=run.data.as_json(),
    )

    def write() -> None:
        run.check_owner()
        save_checkpoint(checkpoints_folder(run.folder), checkpoint, run.config.keep_last)

    distributed.on_main_process(write)


def _finish(run: Run, reporter: Reporter) -> Summary:
    """Write adapter, plot and closing metrics, after the last step's checkpoint was saved.

    Collective: every rank must call this.
    """

    def write() -> Summary:
        run.check_owner()
        last_checkpoint = checkpoint_folder(checkpoints_folder(run.folder), run.num_steps)
        masters, adapter_config = adapter.load_adapter(last_checkpoint)
        beside = {GENERATION_CONFIG_FILE: run.generation_config}
        adapter.save_adapter(run.folder / "adapter", masters, adapter_config, beside)
        plot_losses(reporter.history, run.folder / "loss.png")
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
    norms = engine.delta_norms(run.engine, run.deltas)
    reporter.delta_norms(step, {name.removesuffix(".delta"): norm for name, norm in norms.items()})


def _last_checkpoint_text(folder: Path) -> str:
    found = list_checkpoints(checkpoints_folder(folder))
    return f"the last good checkpoint is {found[0]}" if found else "no checkpoint was written yet"
