"""What training measures, under the tags that all trackers share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType

from diablo_ds.evaluation.statistics import Estimate
from diablo_ds.ranks.log import logger
from diablo_ds.ranks.tracker import Tracker
from diablo_ds.training.heat_map import HeatMap, has_labels
from diablo_ds.training.history import History
from diablo_ds.training.results import results_of
from diablo_ds.training.run_numbers import RunNumbers
from diablo_ds.zero.block_norms import DeltaNorm

_MB, _GB = 1e6, 1e9
_TAGS = {
    "loss": "loss/training",
    "heldout_loss": "loss/heldout",
    "tokens_per_s": "speed/tokens_per_s",
    "mfu": "speed/mfu",
    "step_s": "time/step_s",
    "wait_s": "time/wait_s",
    "evaluation_s": "time/evaluation_s",
    "tasks_s": "time/tasks_s",
    "saving_s": "time/saving_s",
    "memory_now_bytes": "memory/now_GB",
    "memory_bytes": "memory/peak_GB",
    "learning_rate": "optimizer/learning_rate",
    "grad_norm": "optimizer/grad_norm",
    "loss_scale": "optimizer/loss_scale",
    "epoch": "progress/epoch",
    "examples_seen": "progress/examples_seen",
    "tokens_seen": "progress/tokens_seen",
    "evals_without_better": "progress/evals_without_better",
}
"""By the names in the metrics file."""


class Tracking:
    """Hands out what is measured to every tracker; one that fails is left out from then on.

    Args:
        trackers: all of them.
        log_every: steps between points.
        max_grad_norm: to which gradients are clipped; 0 for no clipping.
        describe: returns in words what the run is made with and, from its numbers, came to.
    """

    def __init__(
        self,
        trackers: Sequence[Tracker] = (),
        *,
        log_every: int = 1,
        max_grad_norm: float = 0.0,
        describe: Callable[[RunNumbers], str] = lambda numbers: "",
    ) -> None:
        self._describe = describe
        self._trackers = list(trackers)
        self._log_every, self._max_grad_norm = log_every, max_grad_norm

    def point(
        self,
        step: int,
        values: Mapping[str, float],
        traffic: Mapping[str, int] = MappingProxyType({}),
        *,
        is_last: bool = False,
    ) -> None:
        """Record what the metrics file has of a step or of a held-out evaluation.

        Args:
            step: steps taken.
            values: by their names in the metrics file.
            traffic: bytes of the step's collectives, by their kind.
            is_last: whether it is recorded whatever the interval is.
        """
        if not is_last and step % self._log_every:
            return
        tagged = {_TAGS.get(name, f"other/{name}"): value for name, value in values.items()}
        tagged |= {tag: value / _GB for tag, value in tagged.items() if tag.endswith("_GB")}
        tagged |= {f"network/{kind.replace(' ', '_')}_MB": n / _MB for kind, n in traffic.items()}
        if self._max_grad_norm and "grad_norm" in values:
            is_clipped = not values["grad_norm"] <= self._max_grad_norm
            tagged["optimizer/clipped"] = float(is_clipped)
        self._hand_out(lambda tracker: tracker.scalars(step, tagged))

    def task(self, step: int, name: str, scores: Mapping[str, Estimate]) -> None:
        """Record the scores of a task by metric."""
        tagged = {f"scores/{name}/{metric}": found.score for metric, found in scores.items()}
        self._hand_out(lambda tracker: tracker.scalars(step, tagged))

    def results(self, step: int, history: History) -> None:
        """Record what the run came to so far."""
        tagged = results_of(history)
        if tagged:
            self._hand_out(lambda tracker: tracker.scalars(step, tagged))

    def finish(self, history: History) -> None:
        """Record what the run came to, beside what it was made with."""
        numbers = history.numbers()
        self.results(numbers.steps, history)
        self.text(numbers.steps, "run", self._describe(numbers))

    def delta_norms(self, step: int, norms: Mapping[str, DeltaNorm], *, singly: bool) -> None:
        """Record how large the deltas are: their distribution, and a picture of all of them.

        Args:
            step: steps taken.
            norms: by the name of the delta.
            singly: whether each norm is a scalar of its own too.
        """
        finite = [found.norm for found in norms.values() if math.isfinite(found.norm)]
        if self._trackers and finite:
            self._hand_out(lambda tracker: tracker.histogram(step, "deltas/norms", finite))
            self._heat_map(step, {name: found.relative for name, found in norms.items()})
        if singly:
            tagged = {
                f"norms/{name.removesuffix('.delta')}": found.norm for name, found in norms.items()
            }
            self._hand_out(lambda tracker: tracker.scalars(step, tagged))

    def _heat_map(self, step: int, relative: Mapping[str, float]) -> None:
        heat_map = HeatMap.of(relative)
        if heat_map is None:
            return
        try:
            png = heat_map.png(f"norm of the delta as a share of its blocks' norm, step {step}")
        except Exception as error:  # of matplotlib, its fonts or its own settings file
            logger.warning(f"No picture of the deltas' norms: {type(error).__name__}: {error}")
            return
        self._hand_out(lambda tracker: tracker.image(step, "deltas/relative_norms", png))
        if not has_labels():
            self.text(step, "deltas", heat_map.legend())

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers by tag."""
        self._hand_out(lambda tracker: tracker.scalars(step, values))

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Record a text."""
        self._hand_out(lambda tracker: tracker.text(step, tag, markdown))

    def hyperparameters(self, settings: Mapping[str, bool | int | float | str]) -> None:
        """Record what this start is made with."""
        self._hand_out(lambda tracker: tracker.hyperparameters(settings))

    def event(self, step: int, time: datetime, text: str) -> None:
        """Record that something happened."""
        self._hand_out(lambda tracker: tracker.event(step, time, text))

    def close(self) -> None:
        """Close all trackers."""
        self._hand_out(lambda tracker: tracker.close())
        self._trackers.clear()

    def _hand_out(self, hand_out: Callable[[Tracker], None]) -> None:
        for tracker in tuple(self._trackers):
            try:
                hand_out(tracker)
            except Exception as error:  # whatever a tracker's package raises must not end the run
                self._trackers.remove(tracker)
                logger.warning(
                    f"{tracker.name} gets nothing more of this run: {type(error).__name__}: {error}"
                )
