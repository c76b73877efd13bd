"""MBPP with all problems of the file, those for training, validation and prompts too."""

from __future__ import annotations

from dataclasses import replace

from diablo_ds.evaluation.tasks import mbpp

TASK = replace(mbpp.TASK, name="mbpp_all", split=None)
