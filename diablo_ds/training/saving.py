"""Saving a run: its checkpoint at a step, and whether the best one is still there."""

from __future__ import annotations

import dataclasses

from diablo_ds.errors import UserError
from diablo_ds.files.layout import RunFolder, checkpoint_folder
from diablo_ds.ranks import distributed
from diablo_ds.ranks.heartbeat import heart
from diablo_ds.ranks.log import logger
from diablo_ds.ranks.progress import BYTES, Progress
from diablo_ds.training.checkpoint import Checkpoint, save_checkpoint, verify_checkpoint
from diablo_ds.training.evaluations import Evaluations
from diablo_ds.training.startup import Run


def save(run: Run, step: int, evaluations: Evaluations) -> None:
    """Write a checkpoint, and remove those that are kept no longer. Collective.

    Args:
        run: the run.
        step: steps taken.
        evaluations: up to this step.
    """
    heart.beat("saving")
    what, is_shown = f"Step {step}/{run.num_steps}: checkpoint", distributed.is_main_process()
    with Progress(what, is_shown=is_shown):
        state = run.engine.gather_state()
    is_best = evaluations.best_step == step
    adapter = dataclasses.replace(
        run.adapter, step=step, heldout_loss=evaluations.best_loss if is_best else None
    )
    checkpoint = Checkpoint(
        step=step,
        global_batch=run.run_config.global_batch,
        seed=run.run_config.seed,
        num_optimizer_steps=state.num_optimizer_steps,
        adapter=adapter,
        state=state.deltas,
        loss_scaler=state.scaler,
        data=dataclasses.replace(run.data, lag=run.train_batches.lag_after(step)).as_json(),
        evaluations=evaluations,
    )
    best_step = evaluations.best_step if run.run_config.keep_best else None

    def write() -> None:
        run.check_owner()
        root, keep_last = RunFolder(run.folder).checkpoints, run.run_config.keep_last
        # Each byte is written, and then read for its checksum.
        total = 2 * sum(t.nbytes for tensors in state.deltas.values() for t in tensors.values())
        with Progress(what, total, BYTES) as progress:
            save_checkpoint(root, checkpoint, keep_last, best_step, progress.advance)

    distributed.on_main_process(write)


def with_intact_best(run: Run, evaluations: Evaluations) -> Evaluations:
    """Return the evaluations without the best one where its checkpoint is gone or damaged.

    Collective: every rank must call this.
    """
    if evaluations.best_step is None:
        return evaluations
    best = checkpoint_folder(RunFolder(run.folder).checkpoints, evaluations.best_step)

    def find_problem() -> str:
        try:
            verify_checkpoint(best)
        except UserError as error:
            return str(error)
        return ""

    problem = distributed.on_main_process(find_problem)
    if not problem:
        return evaluations
    logger.warning(f"The best checkpoint is lost, and the best one from now on is kept: {problem}")
    return evaluations.without_best()
