"""Held-out loss: how well a model predicts the answers of any data, or any text."""

from __future__ import annotations

from diablo_ds.evaluation.task import Task

TASK = Task(
    name="loss",
    version=1,
    kind="loss",
    template="auto",
    metrics=("loss", "perplexity"),
    lower_is_better=True,
)
