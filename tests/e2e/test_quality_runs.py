"""The study's trainings, in its own process: equal to the trainer's, repeatable, and recorded."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from benchmarks.quality.spec import Spec
from tests import forked
from tests.e2e.commands import ROOT, environment, losses
from tests.quality_sources import write_sources
from tests.tiny import save_model
from tests.waiting import WAIT_S

pytestmark = pytest.mark.e2e

MICRO_BATCH_TOKENS = 700
CHANGING = ("seconds", "tokens_per_s", "peak_memory_bytes", "date")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("quality")


@pytest.fixture(scope="module")
def sources(folder):
    return write_sources(folder, {"piqa": 30, "winogrande": 40, "arc_easy": 30})


@pytest.fixture(scope="module")
def diablo(folder):
    model = save_model(folder / "model", max_position_embeddings=512)
    return Spec(
        method="diablo",
        num_blocks="4",
        rate=2e-2,
        global_batch=8,
        num_examples=36,  # the last step has 4
        seed=3,
        max_length=400,
        weight_decay=0.1,
        max_grad_norm=0.1,
        num_held_out=12,
        num_questions=9,
        model=str(model),
    )


@pytest.fixture(scope="module")
def specs(diablo):
    change = dataclasses.replace
    full = change(diablo, method="full", num_blocks="", rate=1e-3)
    bf16 = change(diablo, precision="bf16")
    return {
        "first": diablo,
        "lora": change(diablo, method="lora"),
        "full": full,
        "diverged": change(full, rate=1e30, warmup_share=0.0),
        "again": change(diablo),
        "permuted": change(diablo, permuted=True),
        "dora": change(diablo, method="dora", targets="mlp"),
        "other seed": change(diablo, seed=4),
        "masters": bf16,
        "no masters": change(bf16, master="none"),
        "gsm8k": change(diablo, data="gsm8k", num_held_out=5, num_questions=2),
        "too many": change(diablo, num_held_out=1000),
    }


@pytest.fixture(scope="module")
def lines(sources, specs):
    """What the process writes for each spec, in order: progress, then one record or error."""
    settings = {**sources, "micro_batch_tokens": MICRO_BATCH_TOKENS}
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.quality.runs", json.dumps(settings)],
        input="".join(json.dumps(spec.to_json()) + "\n" for spec in specs.values()),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    found = {name: [] for name in specs}
    names = iter(specs)
    name = next(names)
    for line in map(json.loads, process.stdout.splitlines()):
        found[name].append(line)
        if "progress" not in line:
            name = next(names, "")
    return found


@pytest.fixture(scope="module")
def records(lines):
    return {name: own[-1].get("record") for name, own in lines.items()}


def values(record):
    """What must not depend on when and after what a spec is trained."""
    return {name: value for name, value in record.items() if name not in CHANGING}


def test_a_run_is_what_the_trainer_trains(records, sources, diablo, folder):
    output = folder / "run"
    parts = folder / "parts" / "commonsense"
    record = records["first"]
    forked.diablo_ds(
        *["train", "--ds_config", ROOT / "ds_configs" / "zero0.json", "--model", diablo.model],
        *["--data", parts / "train.jsonl", "--heldout_data", parts / "heldout.jsonl"],
        *["--output", output, "--num_blocks", diablo.num_blocks, "--seed", diablo.seed],
        *["--global_batch", diablo.global_batch, "--micro_batch_tokens", MICRO_BATCH_TOKENS],
        *["--num_epochs", diablo.num_examples / sum(record["data"]["train"].values())],
        *["--learning_rate", diablo.rate, "--warmup_steps", diablo.warmup_steps],
        *["--weight_decay", diablo.weight_decay, "--max_grad_norm", diablo.max_grad_norm],
        *["--max_length", diablo.max_length, "--precision", "fp32", "--compile", "off"],
        *["--corpus", "commonsense", "--template", "plain"],
    )
    assert losses(output) == dict(record["curve"])  # bit for bit
    assert len(record["curve"]) == diablo.num_steps == 5
    assert max(record["grad_norms"]) > diablo.max_grad_norm  # clipping acts


def test_a_spec_trains_the_same_after_others(records):
    assert values(records["again"]) == values(records["first"])
    assert records["other seed"]["curve"] != records["first"]["curve"]


@pytest.mark.parametrize("name", ["first", "lora", "full", "permuted", "dora", "masters", "gsm8k"])
def test_every_method_learns_from_the_same_start(records, name):
    record, first = records[name], records["first"]
    assert record["status"] == "done"
    assert record["heldout"] < record["heldout_before"]
    if name not in ("masters", "gsm8k"):
        assert record["heldout_before"] == first["heldout_before"]
        assert record["curve"][0][1] == pytest.approx(first["curve"][0][1], rel=1e-5)
        assert record["curve"][1:] != first["curve"][1:] or name == "first"
        assert record["answers_before"] == first["answers_before"]
        assert record["tokens"] == first["tokens"]


def test_a_record_has_all_that_a_report_needs(records):
    record = records["first"]
    assert record["heldout_examples"] == len(record["heldout_nats"]) == 12
    mean = sum(record["heldout_nats"]) / record["heldout_targets"]
    assert mean == pytest.approx(record["heldout"], abs=1e-5)
    assert len(record["answers"]) == len(record["question_tasks"]) == 9
    assert record["accuracy"] == sum(record["answers"]) / 9
    assert {"build", "train", "heldout", "questions", "total"} == record["seconds"].keys()
    assert record["trainable"] > 0
    assert record["delta_path"] == "summed"
    assert records["lora"]["lora_rank"] > 0
    assert len(records["gsm8k"]["answers"]) == 2
    assert len(record["grad_norms"]) == record["num_steps"]


def test_progress_is_told_after_each_step(lines, diablo):
    steps = [line["progress"]["step"] for line in lines["first"][:-1]]
    assert steps == list(range(1, diablo.num_steps + 1))


def test_a_divergence_is_a_result(records):
    record = records["diverged"]
    assert record["status"] == "diverged"
    assert 1 < record["diverged_step"] <= record["num_steps"]
    assert len(record["curve"]) == record["diverged_step"] - 1


def test_without_masters_small_updates_are_lost_to_rounding(records):
    with_masters, without = records["masters"], records["no masters"]
    assert without["status"] == "done"
    assert without["curve"][0] == with_masters["curve"][0]
    assert without["curve"] != with_masters["curve"]


def test_a_spec_that_does_not_fit_the_data_is_an_error(lines):
    (line,) = lines["too many"]
    assert "num_held_out must be at most" in line["error"]
