"""The end of a run: its adapter, its loss curve, and what a person is told."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from diablo_ds.adapter.storage import load_adapter, save_adapter
from diablo_ds.config.continuation import describe_ahead
from diablo_ds.config.starts import load_starts
from diablo_ds.conversion.card import Training, base_licence, model_card
from diablo_ds.data.text.end_tokens import GENERATION_CONFIG_FILE
from diablo_ds.errors import UserError
from diablo_ds.files.layout import CARD_FILE, LOSS_PLOT, RunFolder, checkpoint_folder
from diablo_ds.ranks import distributed
from diablo_ds.ranks.log import in_rows
from diablo_ds.training.checkpoint import verify_checkpoint
from diablo_ds.training.evaluations import Evaluations
from diablo_ds.training.metrics import plot_losses
from diablo_ds.training.next_commands import describe_next
from diablo_ds.training.pruning import remove_old
from diablo_ds.training.reports import Reports
from diablo_ds.training.startup import Run


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    folder: Path
    steps: int
    """Steps that were taken."""
    first_heldout_loss: float | None
    last_heldout_loss: float | None
    early_stop: str = ""
    """Why the run stopped before its last step; empty where it did not."""
    best: tuple[int, float] | None = None
    """Step and held-out loss of the adapter, where the best one was kept."""
    measured: str = ""
    """Time, rate and memory of its steps; empty where none was taken."""
    next_commands: str = ""
    """What can be done with the adapter; see `describe_next`."""

    def text(self) -> str:
        """Return the closing lines for a person: results, places, what to try next."""
        files = RunFolder(self.folder)
        lines = [f"Done: {self.steps} steps."]
        if self.first_heldout_loss is not None:
            first, last = self.first_heldout_loss, self.last_heldout_loss
            lines[0] += f" Held-out loss from {first:.4f} to {last:.4f}."
        if self.measured:
            lines.append(self.measured)
        if self.early_stop:
            lines.append(f"Stopped early, {self.early_stop}.")
        if self.best is not None:
            step, loss = self.best
            lines.append(f"The adapter is the best one, of step {step} with {loss:.4f}.")
            if step == 0:
                lines.append("Warning: no step was better than what the run started from.")
        lines = [
            *map(in_rows, lines),
            f"  adapter      {files.adapter}",
            f"  checkpoint   {checkpoint_folder(files.checkpoints, self.steps)}",
            f"  TensorBoard  {files.tensorboard}",
            f"  loss curve   {files.loss_plot}",
            self.next_commands,
        ]
        return "\n".join(lines)


def finish(run: Run, reports: Reports, steps: int, evaluations: Evaluations) -> Summary:
    """Write adapter, plot and closing metrics, after the last step's checkpoint was saved.

    Collective: every rank must call this.

    Args:
        run: the run.
        reports: its reports.
        steps: steps that were taken; fewer than the run's where patience ended it.
        evaluations: all of them.

    Raises:
        UserError: if the best checkpoint, which becomes the adapter, was damaged meanwhile.
        OSError: if something cannot be written.
    """
    is_early = steps < run.num_steps
    early_stop = evaluations.describe_stop(steps, run.num_steps) if is_early else ""
    world_size = distributed.world_size()
    best = evaluations.best if run.run_config.keep_best else None

    def write() -> Summary:
        run.check_owner()
        files, history = RunFolder(run.folder), reports.history
        best_step = None if best is None else best[0]
        chosen = checkpoint_folder(files.checkpoints, steps if best_step is None else best_step)
        _verify(chosen)
        # What a process left that was killed between a save and the removal that follows it.
        newest = checkpoint_folder(files.checkpoints, steps)
        remove_old(files.checkpoints, newest, run.run_config.keep_last, best_step)
        masters, adapter_config = load_adapter(chosen)
        heldout = dict(history.heldout)
        loss = heldout.get(steps, math.nan) if best is None else best[1]
        if math.isfinite(loss):
            adapter_config = dataclasses.replace(adapter_config, heldout_loss=loss)
        plot_losses(history, files.loss_plot)
        plot = files.loss_plot.read_bytes() if files.loss_plot.is_file() else b""
        training = Training(
            run_config=run.run_config,
            ds_config_file=run.ds_config_file,
            world_size=world_size,
            num_steps=steps,
            losses=history.losses,
            heldout=history.heldout,
            data=run.data.as_json(),
            has_plot=bool(plot),
            changes=describe_ahead(load_starts(files.run_config)),
        )
        card = model_card(
            adapter_config,
            sum(delta.numel() for delta in masters.values()),
            training,
            base_licence(adapter_config.base_model, run.base_folder),
        )
        beside = {GENERATION_CONFIG_FILE: run.generation_config, CARD_FILE: card.encode()}
        if plot:
            beside[LOSS_PLOT] = plot
        save_adapter(files.adapter, masters, adapter_config, beside)
        files.write_progress(
            run.num_steps,
            run.start_step,
            done=True,
            early_stop=early_stop,
            evals_without_better=evaluations.num_without_better,
        )
        losses = list(heldout.values())
        first, last = (losses[0], losses[-1]) if losses else (None, None)
        reports.write(lambda reporter: reporter.close(is_done=True))
        if reports.error is not None:  # a report of the last step, which no later step tells
            raise reports.error
        measured = history.numbers().measured_text()
        commands = describe_next(run.run_config, run.folder)
        return Summary(run.folder, steps, first, last, early_stop, best, measured, commands)

    return distributed.on_main_process(write)


def _verify(checkpoint: Path) -> None:
    try:
        verify_checkpoint(checkpoint)
    except UserError as error:
        raise UserError(
            f"{error}; the same command again takes the best of the checkpoints that are left"
        ) from None
