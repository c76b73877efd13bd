"""The held-out evaluations of a run: which was the best, and how many since were not better.

The evaluation at step 0, of what the run starts from, is one of them. A loss that is not finite is
never better, and of equal losses the earlier one stays the best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError

EVALS_PER_RUN = 4
"""Held-out evaluations and checkpoints in a run where the config leaves their interval open."""


@dataclass(frozen=True)
class Evaluations:
    """What a run has to remember of its evaluations; a checkpoint keeps it."""

    last_step: int | None = None
    """Step of the last evaluation that is counted here."""
    best_step: int | None = None
    best_loss: float | None = None
    """Lowest held-out loss, in nats per target token."""
    num_without_better: int = 0
    """Evaluations since the best one."""

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and loss of the best evaluation; None before the first with a finite loss."""
        if self.best_step is None or self.best_loss is None:
            return None
        return self.best_step, self.best_loss

    def including(self, step: int, loss: float) -> Evaluations:
        """Return what is to be remembered after one more evaluation."""
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            return Evaluations(step, step, loss)
        return replace(self, last_step=step, num_without_better=self.num_without_better + 1)

    def without_best(self) -> Evaluations:
        """Return the same without the best one, whose checkpoint is lost."""
        return replace(self, best_step=None, best_loss=None)

    def describe_stop(self, step: int, num_steps: int) -> str:
        """Return in words why patience ends a run after a step."""
        best = "" if self.best is None else f" than {self.best[1]:.4f} at step {self.best[0]}"
        return (
            f"after step {step} of {num_steps}: {self.num_without_better} evaluations in a row "
            f"brought no lower held-out loss{best}"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the fields in the form that a checkpoint saves."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any, step: int, source: Path) -> Evaluations:
        """Read the fields from a checkpoint.

        Args:
            value: what `as_json` returned; None where an older version wrote the checkpoint.
            step: of the checkpoint.
            source: named in errors.

        Raises:
            UserError: if the value is not what `as_json` returns.
        """
        if value is None:
            return cls()
        if not isinstance(value, Mapping) or not _is_legal(value, step):
            raise UserError(
                f"evaluations of a checkpoint must have last_step and best_step <= {step}, "
                f"best_loss and num_without_better; got {value!r:.120} in {source}"
            )
        return cls(**value)


def _is_legal(value: Mapping[str, Any], step: int) -> bool:
    if value.keys() != asdict(Evaluations()).keys():
        return False
    steps = [value["last_step"], value["best_step"]]
    loss, count = value["best_loss"], value["num_without_better"]
    return (
        all(s is None or (type(s) is int and 0 <= s <= step) for s in steps)
        and (loss is None or (type(loss) in (int, float) and math.isfinite(loss)))
        and (loss is None) == (value["best_step"] is None)
        and type(count) is int
        and count >= 0
    )


def interval(every: int, num_steps: int) -> int:
    """Return the steps between evaluations or checkpoints.

    Args:
        every: as given; 0 for open.
        num_steps: of the run.
    """
    return every or max(1, -(-num_steps // EVALS_PER_RUN))


def check_evaluated(run_config: RunConfig, num_steps: int, *, has_heldout: bool) -> None:
    """Check that settings which act on evaluations can act.

    Args:
        run_config: the run config.
        num_steps: of the run.
        has_heldout: whether there are held-out data.

    Raises:
        UserError: if there is nothing to evaluate, or patience ends no sooner than the run.
    """
    for name in ("keep_best", "patience", "sample_prompts"):
        value = getattr(run_config, name)
        if value and not has_heldout:
            raise UserError(
                f"{name} needs held-out data; got {name}={value} and "
                "no held-out data; give --heldout-data, or a --heldout-share above 0"
            )
    every = interval(run_config.eval_every, num_steps)
    if run_config.patience and run_config.patience * every >= num_steps:
        most = (num_steps - 1) // every
        repair = f"a --patience of at most {most}" if most else "a smaller --eval-every"
        raise UserError(
            "patience must be able to stop the run before its end; got "
            f"patience={run_config.patience} with an evaluation every {every} of {num_steps} "
            f"steps; give {repair}{' or a smaller --eval-every' if most else ''}"
        )
