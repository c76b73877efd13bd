"""Forgetting: how much an adapter raises the loss on text that it was not trained for."""

from __future__ import annotations

from diablo_ds.evaluation.task import Task

TASK = Task(
    name="forgetting",
    version=1,
    kind="loss",
    template="auto",
    metrics=("loss", "perplexity", "rise"),
    lower_is_better=True,
)
