"""lm-evaluation-harness on our questions: the same files, prompts, choices and weights.

It reads the file by itself and takes the correct answer from there; only the prompt's text is made
by our template. Its own model class, request building, batches, filters and metrics are used as
they are (0.4.13 runs with transformers 5 without a change).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.questions import Asked
from diablo_ds.data.corpora.families import ANSWER_OPENING
from diablo_ds.errors import UserError

_NUMBER = {"function": "regex", "regex_pattern": r"(-?[$0-9.,]{2,})|(-?[0-9]+)", "group_select": -1}
"""The harness's own rule for GSM8K: the last number of the answer (its filter flexible-extract)."""
_IGNORED = [",", r"\$", "(?s).*#### ", r"\.$"]


def require_harness() -> None:
    """Raise UserError where lm-evaluation-harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "lm-evaluation-harness must be installed; got none; run pip install 'diablo-ds[bench]'"
        )


def _quiet() -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def load_harness_model(folder: Path, batch_size: int) -> Any:
    """Return the harness's model of transformers, with weights in fp32 on the CPU.

    Args:
        folder: of the model.
        batch_size: rows of a batch; `set_batch_size` changes it.
    """
    _quiet()
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=batch_size)


def set_batch_size(model: Any, batch_size: int) -> None:
    """Change the rows of a batch of `load_harness_model`'s model."""
    model.batch_size_per_gpu = batch_size


def harness_task(asked: Asked, kind: str) -> Any:
    """Return a task of the harness.

    Args:
        asked: the questions, with commonsense fields for "choice", and GSM8K's for "generation".
        kind: "choice" or "generation".
    """
    _quiet()
    from lm_eval.api.task import ConfigurableTask

    texts, choices = asked.texts(), [list(question.choices) for question in asked.questions]
    config: dict[str, Any] = {
        "task": asked.task.name,
        "custom_dataset": lambda **_: {"test": _rows(asked)},
        "test_split": "test",
        "num_fewshot": 0,
        "target_delimiter": "",
        "doc_to_text": lambda row: texts[row["row"]],
    }
    mean = {"aggregation": "mean", "higher_is_better": True}
    if kind == "choice":
        config |= {
            "output_type": "multiple_choice",
            "doc_to_choice": lambda row: choices[row["row"]],
            "doc_to_target": lambda row: choices[row["row"]].index(ANSWER_OPENING + row["answer"]),
            "metric_list": [{"metric": name, **mean} for name in ("acc", "acc_norm")],
        }
    else:
        exact = {"metric": "exact_match", "ignore_case": True, "regexes_to_ignore": _IGNORED}
        config |= {
            "output_type": "generate_until",
            "doc_to_target": lambda row: row["answer"],
            "generation_kwargs": {
                "until": [],
                "do_sample": False,
                "max_gen_toks": asked.task.max_new_tokens,
            },
            "metric_list": [exact | mean],
            "filter_list": [
                {"name": "last-number", "filter": [_NUMBER, {"function": "take_first"}]}
            ],
        }
    return ConfigurableTask(config=config)


def _rows(asked: Asked) -> Any:
    """Return the first rows of the file, read by the harness's own library, with their numbers."""
    import datasets

    with tempfile.TemporaryDirectory() as cache:
        rows = datasets.load_dataset(
            "json",
            data_files=str(asked.path),
            split=f"train[:{len(asked.questions)}]",
            cache_dir=cache,
            keep_in_memory=True,
        )
    return rows.add_column("row", list(range(len(rows))))


def run_harness(model: Any, task: Any, limit: int) -> list[Mapping[str, Any]]:
    """Return the harness's samples of the first questions, in their order.

    Args:
        model: of `load_harness_model`.
        task: of `harness_task`.
        limit: how many questions.
    """
    from lm_eval.evaluator import evaluate

    name = task.config.task
    found = evaluate(model, {name: task}, limit=limit, bootstrap_iters=0, verbosity="ERROR")
    return sorted(found["samples"][name], key=lambda sample: int(sample["doc_id"]))
