"""MAWPS: a collection of word problems."""

from __future__ import annotations

from diablo_ds.evaluation.tasks._word_problems import word_problem_task

TASK = word_problem_task("mawps")
