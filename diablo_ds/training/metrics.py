"""What rank 0 reports of a run: a metrics file, trackers such as TensorBoard, console lines."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import MappingProxyType

from diablo_ds.config.run import RunConfig
from diablo_ds.evaluation.statistics import Estimate
from diablo_ds.files import owned
from diablo_ds.files.atomic import new_file
from diablo_ds.files.figures import figure_class
from diablo_ds.files.layout import RunFolder
from diablo_ds.files.ownership import FolderOwner
from diablo_ds.ranks.log import logger
from diablo_ds.ranks.progress import format_seconds
from diablo_ds.training.evaluations import Evaluations
from diablo_ds.training.history import History
from diablo_ds.training.metrics_file import TASK_PREFIX, format_point, parsed_lines
from diablo_ds.training.screen import Screen
from diablo_ds.training.tracking import Tracking
from diablo_ds.zero.block_norms import DeltaNorm

STOPPED_EARLY = "stopped_early"
"""Field of the point that says that patience ended the run; cut where the run continues."""


class Reporter:
    """Writes one point per step to every place a user may look at; on rank 0 only.

    Args:
        folder: the run folder.
        run_config: of the run.
        num_steps: steps of the run.
        start_step: steps taken before this process; later points of an earlier process are cut.
        owner: of the folder; where it was lost, another process writes the metrics file.
        tracking: where measurements go beside the metrics file; nowhere by default.
        num_gpus: of all ranks; 0 on CPUs.
    """

    def __init__(
        self,
        folder: Path,
        run_config: RunConfig,
        *,
        num_steps: int,
        start_step: int,
        owner: FolderOwner | None = None,
        tracking: Tracking | None = None,
        num_gpus: int = 0,
    ) -> None:
        self._owner = owner
        self.run_config = run_config
        self.num_steps = num_steps
        files = RunFolder(folder)
        self._metrics_file = files.metrics
        # A start from step 0 evaluates and records that step again.
        last = start_step or -1
        self.history = self._keep_until(last)
        files.write_progress(num_steps, start_step, done=False)
        self._tracking = Tracking() if tracking is None else tracking
        self._screen = Screen(run_config, num_steps, start_step, num_gpus)

    def _keep_until(self, last_step: int) -> History:
        """Cut the metrics file after a step, and return the points that stay."""
        history, num_bad = History(), 0
        with (
            new_file(self._metrics_file) as temporary,
            owned.open_owned(temporary, "w", encoding="utf-8") as file,
        ):
            for point in parsed_lines(self._metrics_file):
                if point is None:
                    num_bad += 1
                elif point["step"] <= last_step and STOPPED_EARLY not in point:
                    history.add(point)
                    file.write(format_point(point))
        if num_bad:
            logger.warning(f"Left out of {self._metrics_file}: {num_bad} lines that are no points")
        return history

    def step(
        self,
        step: int,
        values: Mapping[str, float],
        traffic: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Record a training step.

        Args:
            step: steps taken, this one included.
            values: "loss", "learning_rate", "tokens_per_s", and more that is only recorded; "mfu"
                where it is known.
            traffic: bytes of the collectives by their kind, which only trackers get.
        """
        point = {"step": step, **values}
        self._write(point)
        self._tracking.point(step, values, traffic, is_last=step == self.num_steps)
        self._screen.step(point, self.history.losses.values)

    def heldout(self, step: int, loss: float, evaluations: Evaluations) -> None:
        """Record a held-out loss.

        Args:
            step: steps taken.
            loss: in nats per target token.
            evaluations: this one included.
        """
        values = {"heldout_loss": loss}
        if self.run_config.patience:
            values["evals_without_better"] = float(evaluations.num_without_better)
        self._write({"step": step, **values})
        self._tracking.point(step, values, is_last=True)
        self._tracking.results(step, self.history)
        self._screen.heldout(loss)
        shown = self._describe_evaluations(step, evaluations)
        logger.info(f"step {step}/{self.num_steps}  held-out loss {loss:.4f}{shown}")

    def _describe_evaluations(self, step: int, evaluations: Evaluations) -> str:
        patience = self.run_config.patience
        if evaluations.best_loss is None or not (patience or self.run_config.keep_best):
            return ""
        if evaluations.best_step == step:
            return ", the best so far"
        text = f", best {evaluations.best_loss:.4f} at step {evaluations.best_step}"
        if not patience:
            return text
        return f"{text}; {evaluations.num_without_better} of {patience} without a better one"

    def times(self, step: int, seconds: Mapping[str, float]) -> None:
        """Record the seconds of evaluations and checkpoints after the last step, by their names.

        In the metrics file alone: a curve has those of the last step itself at that place.
        """
        if seconds:
            self._write({"step": step, **seconds})

    def stopped_early(self, step: int, evaluations: Evaluations) -> None:
        """Record that patience ends the run after a step."""
        self._write({"step": step, STOPPED_EARLY: 1.0})
        logger.info(f"Stopping early, {evaluations.describe_stop(step, self.num_steps)}")

    def base_dropout(self, rates: Mapping[str, float]) -> None:
        """Record the largest of the base's own dropout rates, where there are any."""
        if rates:
            self._write({"step": 0, "base_dropout": max(rates.values())})

    def task(self, step: int, name: str, scores: Mapping[str, Estimate], seconds: float) -> None:
        """Record the scores of a task.

        Args:
            step: steps taken.
            name: of the task.
            scores: by metric.
            seconds: that the task took.
        """
        prefix = f"{TASK_PREFIX}{name}/"
        values = {f"{prefix}{metric}": found.score for metric, found in scores.items()}
        self._tracking.task(step, name, scores)
        count = max((found.n for found in scores.values()), default=0)
        self._write({"step": step, **values, f"{prefix}n": float(count)})
        shown = "  ".join(
            f"{metric} {found.score:.4f} [{found.interval.low:.4f}, {found.interval.high:.4f}]"
            for metric, found in scores.items()
        )
        logger.info(
            f"step {step}/{self.num_steps}  {name}: {shown}  (n={count}, {format_seconds(seconds)})"
        )

    def delta_norms(self, step: int, norms: Mapping[str, DeltaNorm]) -> None:
        """Record how large each delta is."""
        singly = self.run_config.track_delta_norms
        self._tracking.delta_norms(step, norms, singly=singly)

    def samples(self, step: int, table: str) -> None:
        """Record answers to held-out prompts, as a Markdown table."""
        self._tracking.text(step, "samples", table)

    def ended(self, step: int, text: str) -> None:
        """Record why the run ends before it is done."""
        self._tracking.event(step, datetime.now().astimezone(), text)

    def close(self, *, is_done: bool = False) -> None:
        """Record what the run came to, where it is done, and close."""
        if is_done:
            self._tracking.finish(self.history)
        self._tracking.close()
        self._screen.close()

    def _write(self, point: dict[str, float]) -> None:
        self.history.add(point)
        if self._owner is not None and self._owner.is_lost:  # the next save says so and ends
            return
        with owned.open_owned(self._metrics_file, "a", encoding="utf-8") as file:
            file.write(format_point(point))


def plot_losses(history: History, path: Path) -> None:
    """Draw training and held-out loss over steps as a PNG, where matplotlib can; else warn."""
    try:
        _plot(history, path)
    except ImportError:
        logger.warning(f"{path.name} is not drawn: it needs matplotlib; run pip install matplotlib")
    except Exception as error:  # of matplotlib, its fonts or its own settings file
        logger.warning(f"{path.name} is not drawn: {type(error).__name__}: {error}")


def _plot(history: History, path: Path) -> None:
    figure = figure_class()(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for curve, label, style in (
        (history.losses, "training (one step)", {"linewidth": 1, "alpha": 0.7}),
        (history.heldout, "held-out", {"marker": "o", "linewidth": 2}),
    ):
        if curve:
            axes.plot(curve.steps, curve.values, label=label, **style)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss per target token (nats)")
    axes.grid(alpha=0.3)
    axes.legend()
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
