"""The MetaMathQA benchmark from model and data to its report, on a tiny model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.quality import metamath_protocol as protocol
from benchmarks.quality.metamath import run_all
from benchmarks.quality.metamath_commands import run
from benchmarks.quality.metamath_settings import Settings
from diablo_ds.errors import UserError
from tests import forked
from tests.tiny import save_model

pytestmark = pytest.mark.e2e
NUM_QUESTIONS = 3


def _run(words, *, ranks=1):
    assert ranks == 1
    forked.diablo_ds(*words)
    return 1.0


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metamath")
    model = save_model(folder / "tiny", max_position_embeddings=1024, initializer_range=0.3)
    sampled = {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "eos_token_id": 256}
    (model / "generation_config.json").write_text(json.dumps(sampled))
    rows = [{"query": f"{n} + 1?", "response": f"The answer is: {n + 1}"} for n in range(12)]
    tests = [{"question": f"{n} + 20?", "answer": f"#### {n + 20}"} for n in range(NUM_QUESTIONS)]
    texts = [{"text": f"The number {n} comes before {n + 1}."} for n in range(4)]
    for name, part in (("data", rows), ("test", tests), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return Settings(
        model=str(model),
        data=str(folder / "data.jsonl"),
        test=folder / "test.jsonl",
        texts=folder / "texts.jsonl",
        output=folder / "out",
        examples=12,
        steps=3,
        num_blocks="4",
        precision="fp32",
        max_new_tokens=12,
        with_base=True,
    )


@pytest.fixture(scope="module")
def results(settings):
    run_all(settings, _run)
    return json.loads((settings.output / "results.json").read_text())


def test_results_are_those_of_the_run_and_of_the_protocols_rule(settings, results):
    assert results["training"]["steps"] == 3
    shapes = [(32, 32), (32, 16), (32, 16), (32, 64), (64, 32)]  # q, k, v, up, down
    per_layer = sum(rows * columns // 4 for rows, columns in shapes)
    assert results["training"]["trainable_parameters"] == 2 * per_layer
    assert results["decoding"] == {"temperature": 0.5, "top_p": 0.9}
    assert results["data"]["rows_trained"] == 12
    lines = (settings.output / "evaluation" / "predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["prompt"] for row in rows} == {
        protocol.prompt_of(f"{n} + 20?") for n in range(NUM_QUESTIONS)
    }
    for name, is_base in (("base", True), ("diablo", False)):
        answers = [row for row in rows if (row["model"] == "base") == is_base]
        right = [protocol.is_right(r["prompt"], r["output"], r["reference"]) for r in answers]
        found = results["test"][name]["accuracy"]
        assert (found["n"], found["score"]) == (NUM_QUESTIONS, sum(right) / NUM_QUESTIONS)
    rise = results["forgetting"]["diablo rise"]
    losses = [results["forgetting"][f"{name} loss"] for name in ("base", "diablo")]
    assert rise == pytest.approx(losses[1] - losses[0], abs=1e-6)
    assert rise != 0, "the adapter changes nothing"


def test_the_report_sets_the_published_figures_apart(settings, results):
    report = (settings.output / "report.md").read_text()
    measured, published = report.split("## Published, not measured here")
    assert "LoRA r32" not in measured
    assert "| rsLoRA r64, q and v, 2026-07-15 | 0.513 (0.486 to 0.540)" in published
    assert "**Not comparable with the published figures**: the model is not" in measured
    assert "12 examples, not 20,000" in measured


def test_a_second_call_trains_and_asks_nothing(settings, results):
    def refuse_training(words, *, ranks=1):
        assert words[0] == "evaluate"
        return _run(words, ranks=ranks)

    run_all(settings, refuse_training)
    again = json.loads((settings.output / "results.json").read_text())
    assert again == results


def test_another_training_in_the_same_folder_is_refused(settings, results):
    other = dataclasses.replace(settings, learning_rate="1.0")
    with pytest.raises(UserError, match=r"got learning_rate='1.0', recorded 'auto';"):
        run_all(other, _run)
    data = Path(settings.data)
    data.write_text(data.read_text().replace("+", "plus"))
    with pytest.raises(UserError, match=r"data and tests must stay as they were"):
        run_all(settings, _run)


def test_a_command_that_fails_ends_the_benchmark_with_its_code(capfd):
    with pytest.raises(SystemExit, match="2"):
        run(["inspect", "nowhere/at/all"])
    shown = capfd.readouterr().err
    assert "$ diablo-ds inspect nowhere/at/all" in shown
    assert "Error: path must be" in shown
    assert "continues from there" not in shown
