"""The public corpora themselves, where they are at hand: to datasets, and to training."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.data.batch_source import BatchSource
from diablo_ds.data.batches import Dealer
from diablo_ds.data.loading import load_data
from diablo_ds.data.text.tokenization import load_tokenizer
from diablo_ds.model.finding import find_tokenizer
from tests.e2e.commands import ROOT, ZERO3, losses
from tests.forked import diablo_ds, ranks

CORPORA = Path(os.environ.get("DIABLO_CORPORA", ROOT.parent / "shared" / "corpora"))
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not CORPORA.is_dir(), reason=f"the public corpora are not in {CORPORA} (DIABLO_CORPORA)"
    ),
]
ADAPTERS = CORPORA / "llm-adapters"
SAFETY = CORPORA / "safety" / "safety-tuned-llamas" / "training"
# Each family's real files, with a held-out part of some rows, and how many rows are in them. Of the
# six large ones among the commonsense tasks the first 3,000: all rows of a file have one form.
FAMILIES = {
    "commonsense": (
        [
            "--source",
            ADAPTERS / "dataset",
            "--limit",
            3000,
            "--mix",
            "winogrande=2000",
            "--mix",
            "hellaswag=2000",
            "--mix",
            "social_i_qa=2000",
            "--mix",
            "piqa=0.1",
            "--mix",
            "boolq=0.1",
            "--val-share",
            0.0004,
        ],
        {"ARC-Challenge": 1119, "ARC-Easy": 2251, "boolq": 3000, "hellaswag": 3000}
        | {"openbookqa": 3000, "piqa": 3000, "social_i_qa": 3000, "winogrande": 3000},
    ),
    "math": (
        [
            "--source",
            CORPORA / "gsm8k",
            "--exclude",
            CORPORA / "gsm8k" / "test.jsonl",
            "--val-share",
            0.0006,
        ],
        {"gsm8k": 7473},
    ),
    "code": (
        ["--source", CORPORA / "codealpaca", "--source", CORPORA / "mbpp", "--val-share", 0.0006],
        {"code_alpaca_2k": 2017, "mbpp": 974, "new_codealpaca": 4535},
    ),
    "safety": (
        [
            f"--source=alpaca={CORPORA}/alpaca",
            f"--source=safety={SAFETY}",
            "--mix",
            "safety=1000",
            "--val-share",
            0.002,
        ],
        {"alpaca": 999, "safety": 2483},
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def prepared(request, tmp_path_factory):
    options, rows = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp(request.param) / "prepared"
    diablo_ds("prepare", request.param, *options, "--output", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["rows_in"] == rows
    assert manifest["rows_left_out"]["bad"] <= 2  # two rows of CodeAlpaca have no output
    return folder


def test_packing_wastes_less_than_three_percent(prepared):
    tokenizer = load_tokenizer(find_tokenizer("default"))
    config = RunConfig(data=(str(prepared),), packing=True)
    examples, _ = load_data(config, tokenizer, 49152)
    for micro_batch, global_batch in ((1, 8), (4, 8), (8, 64)):
        config = replace(config, micro_batch=micro_batch, global_batch=global_batch)
        source = BatchSource(examples, config, Dealer(config, tokenizer.pad_id, 0, 1))
        num_steps = config.num_steps(len(source))
        batches = [batch for step in range(num_steps) for batch in source.step(step)]
        num_tokens = sum(batch.num_tokens for batch in batches)
        assert num_tokens == examples.lengths.sum()
        assert 1 - num_tokens / sum(batch.input_ids.numel() for batch in batches) < 0.03


@pytest.mark.parametrize("prepared", ["math"], indirect=True, scope="module")
def test_real_files_train_smollm2_under_zero3_on_two_ranks(prepared, tmp_path):
    """Short examples, small batches, the last layers: 6 steps of the real model on two cores."""
    options = ["--ds_config", ZERO3, "--data", prepared, "--output", tmp_path / "run"]
    options += ["--max-length", 128, "--micro-batch", 1, "--global-batch", 2, "--max-steps", 6]
    options += ["--eval-every", 100, "--save-every", 100, "--learning-rate", 4e-3]
    ranks(*options, "--layers", "26-29")
    assert len(losses(tmp_path / "run")) == 6
    heldout = losses(tmp_path / "run", "heldout_loss")
    assert heldout[6] < heldout[0]


def test_math_data_that_holds_test_questions_is_caught(tmp_path):
    """LLM-Adapters' math_data.json is made of test questions: 1,055 of them GSM8K's."""
    source = ADAPTERS / "ft-training_set" / "math_data.json.gz"
    tests = CORPORA / "gsm8k" / "test.jsonl"
    options = ["--source", source, "--output", tmp_path / "out", "--exclude", tests]
    diablo_ds("prepare", "math", *options)
    left_out = json.loads((tmp_path / "out" / "manifest.json").read_text())["rows_left_out"]
    assert left_out["bad"] == 3  # three more of them have no output
    assert left_out["in_tests"]["same question as a test"] == 1055 - 3


def test_train_questions_of_gsm8k_are_not_taken_for_test_questions(tmp_path):
    tests = ["--exclude", CORPORA / "gsm8k" / "test.jsonl"]
    options = ["--source", CORPORA / "gsm8k" / "train.jsonl.gz", "--output", tmp_path / "out"]
    result = diablo_ds("prepare", "math", *options, *tests)
    number = re.search(r"(\d+) 13 words in a row shared with a test", result.stdout)
    assert number
    assert int(number[1]) <= 5  # questions of a common mould
    assert "same question" not in result.stdout


@pytest.mark.parametrize(
    ("family", "source", "rows"),
    [
        ("math", "metamath/GSM8K_test.jsonl", 1319),
        ("math", "math/MATH_test.rebuilt.jsonl.gz", 5000),
        ("safety", "safety/advbench/harmful_behaviors.csv", 520),
    ],
)
def test_other_forms_are_read_whole(family, source, rows, tmp_path):
    options = ["--source", CORPORA / source, "--output", tmp_path / "out", "--max-length", 4096]
    assert f"{rows:,} rows read" in diablo_ds("prepare", family, *options).stdout
    left_out = json.loads((tmp_path / "out" / "manifest.json").read_text())["rows_left_out"]
    assert (left_out["bad"], left_out["too_long"]) == (0, 0)


def test_answers_without_their_reasoning_are_reported(tmp_path):
    source = CORPORA / "metamath" / "GSM8K_Backward.jsonl.gz"
    options = ["--source", source, "--output", tmp_path / "out"]
    result = diablo_ds("prepare", "math", *options, check=False)
    assert result.returncode != 0
    assert "got 1270 of 1270 rows" in result.stderr
    assert "line 1: field 'answer' must hold the final number after '#### '" in result.stderr
