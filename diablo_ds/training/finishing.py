"""The end of a run: its adapter, its loss curve, and what a person is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diablo_ds.adapter.storage import load_adapter, save_adapter
from diablo_ds.data.text.end_tokens import GENERATION_CONFIG_FILE
from diablo_ds.files.layout import RunFolder, checkpoint_folder
from diablo_ds.ranks import distributed
from diablo_ds.training.metrics import plot_losses
from diablo_ds.training.reports import Reports
from diablo_ds.training.startup import Run


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


def finish(run: Run, reports: Reports) -> Summary:
    """Write adapter, plot and closing metrics, after the last step's checkpoint was saved.

    Collective: every rank must call this.
    """

    def write() -> Summary:
        run.check_owner()
        files, history = RunFolder(run.folder), reports.history
        last_checkpoint = checkpoint_folder(files.checkpoints, run.num_steps)
        masters, adapter_config = load_adapter(last_checkpoint)
        beside = {GENERATION_CONFIG_FILE: run.generation_config}
        save_adapter(files.adapter, masters, adapter_config, beside)
        files.write_progress(run.num_steps, run.start_step, done=True)
        plot_losses(history, files.loss_plot)
        heldout = [p["heldout_loss"] for p in history if "heldout_loss" in p]
        first, last = (heldout[0], heldout[-1]) if heldout else (None, None)
        last_loss = next((p["loss"] for p in reversed(history) if "loss" in p), None)
        named = {"loss": last_loss, "heldout_loss": last}
        final = {name: value for name, value in named.items() if value is not None}
        reports.write(lambda reporter: reporter.close(final))
        if reports.error is not None:  # a report of the last step, which no later step tells
            raise reports.error
        return Summary(run.folder, run.num_steps, first, last)

    return distributed.on_main_process(write)
