"""SocialIQA: what people feel, want and do."""

from __future__ import annotations

from diablo_ds.evaluation.tasks._commonsense import commonsense_task

TASK = commonsense_task("social_i_qa", tuple(f"answer{n}" for n in range(1, 6)))
