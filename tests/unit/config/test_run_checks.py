"""Settings that contradict each other, or have no effect beside others."""

from __future__ import annotations

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError

STREAM = {"stream": True, "data": ("rows.jsonl",), "max_steps": 5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reentrant": True, "recompute": False}, "reentrant needs recomputation"),
        ({"recomputed_layers": 2, "recompute": False}, "needs recomputation"),
        ({"recomputed_layers": 2, "memory_budget": 1.0}, "memory_budget chooses"),
        ({"keep_attention": True, "reentrant": True}, "needs the non-re-entrant form"),
        ({"memory_budget": 1.0, "recompute": True}, "memory_budget decides"),
        ({"delta_path": "summed", "dropout": 0.1}, "'summed' needs dropout=0"),
        ({"delta_path": "triton_summed", "dropout": 0.1}, "'triton_summed' needs dropout=0"),
        ({"packing": True, "group_by_length": True}, "no effect with packing"),
        ({"micro_batch": 2, "micro_batch_tokens": 600}, "not both"),
        ({"micro_batch_tokens": 100}, "must hold the longest example"),
        ({"heldout_data": ("x.jsonl",)}, "heldout_data has no effect"),
        ({"corpus": "math"}, "corpus has no effect"),
        ({"template": "chat"}, "template has no effect"),
        ({"control_tokens": "read", "template": "chat"}, "needs the template plain"),
        ({"num_epochs": 0.0}, "max_steps or num_epochs"),
        ({"eval_task_every": 5}, "eval_task_every has no effect without eval_tasks"),
        ({"weak_sandbox": True}, "weak_sandbox has no effect without eval_tasks"),
        ({"eval_task_limit": ("5",)}, "eval_task_limit has no effect without eval_tasks"),
        ({"eval_tasks": ("gsm8k",), "eval_task_limit": ("boolq=5",)}, "one of the tasks gsm8k;"),
        ({"eval_tasks": (",",)}, "eval_tasks must name tasks"),
        ({"eval_tasks": ("gsm8k,boolq", "gsm8k")}, "each task once"),
        ({**STREAM, "data": ("default",)}, "stream needs raw files"),
        ({**STREAM, "max_steps": 0}, "and max_steps"),
        ({**STREAM, "packing": True}, "packing needs the lengths"),
        ({**STREAM, "overlong": "error"}, "overlong must not be error"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        RunConfig(**settings)


def test_a_stream_with_what_it_needs_is_legal():
    assert RunConfig(**STREAM).stream
