"""Whether our answers are those of lm-evaluation-harness, question by question.

    python -m benchmarks.agreement --output FOLDER

Both read the same files and have the same weights in fp32 and the same prompts. The harness moves
white space at the end of a prompt into the answer, so that each of its log-likelihoods has that of
the white space as well, which is the same for all choices of a question: it is subtracted before
log-likelihoods are compared, and added to ours before choice_norm is.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.evaluate import parts_of
from benchmarks.evaluate_methods import Ours, Part, first_largest
from benchmarks.harness import harness_task, load_harness_model, require_harness, run_harness
from benchmarks.json_lines import append_line, read_lines
from benchmarks.questions import Asked
from benchmarks.report import machine, table
from diablo_ds.cli.console import clean_errors
from diablo_ds.evaluation.items import CHOICE, GENERATION
from diablo_ds.evaluation.scores import judge_choices
from diablo_ds.evaluation.task_data import data_digest
from diablo_ds.files.atomic import write_text
from diablo_ds.model.finding import find_model

TOLERANCE_NATS = 1e-3
"""Largest difference of a log-likelihood in fp32, which rounds with the batch."""


def compare_choices(
    asked: Asked, ours: Sequence[Any], samples: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Compare the scored choices of each question.

    Args:
        asked: the questions.
        ours: a `ChoiceResult` for each.
        samples: the harness's sample of each, in the same order.

    Returns:
        Scores of both, on how many questions choices and verdicts are equal, and the ids of others.
    """
    own, norm, theirs, their_norm, others = 0.0, 0.0, 0.0, 0.0, []
    equal_norm, worst = 0, 0.0
    for question, result, sample in zip(asked.questions, ours, samples, strict=True):
        mine = list(result.log_likelihoods)
        harness = [float(response[0]) for response in sample["filtered_resps"]]
        white_space = sum(b - a for a, b in zip(mine, harness, strict=True)) / len(mine)
        moved = [value + white_space for value in mine]
        worst = max(worst, *(abs(a - b) for a, b in zip(moved, harness, strict=True)))
        scores = judge_choices(question, mine).scores
        own, norm = own + scores["choice"], norm + scores["choice_norm"]
        theirs, their_norm = theirs + sample["acc"], their_norm + sample["acc_norm"]
        is_equal = first_largest(mine) == first_largest(harness)
        if not is_equal or scores["choice"] != sample["acc"]:
            others.append(question.id)
        equal_norm += judge_choices(question, moved).scores["choice_norm"] == sample["acc_norm"]
    count = len(asked.questions)
    return {
        "questions": count,
        "equal": count - len(others),
        "different": others,
        "score": own / count,
        "harness_score": theirs / count,
        "equal_norm_with_white_space": equal_norm,
        "norm": norm / count,
        "harness_norm": their_norm / count,
        "largest_difference_nats": worst,
    }


def compare_answers(
    asked: Asked, ours: Sequence[Any], samples: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Compare the generated answers of each question; see `compare_choices`.

    Args:
        asked: the questions.
        ours: a `Generation` for each.
        samples: the harness's sample of each, in the same order.
    """
    assert asked.task.judge is not None
    own, theirs, others, equal_scores = 0.0, 0.0, [], 0
    for question, result, sample in zip(asked.questions, ours, samples, strict=True):
        if result.text != sample["resps"][0][0]:
            others.append(question.id)
        score = asked.task.judge(question, result.text).scores["last_number"]
        harness_score = float(sample["exact_match"])  # NumPy's, which JSON cannot hold
        own, theirs = own + score, theirs + harness_score
        equal_scores += score == harness_score
    count = len(asked.questions)
    return {
        "questions": count,
        "equal": count - len(others),
        "different": others,
        "score": own / count,
        "harness_score": theirs / count,
        "equal_scores": equal_scores,
        "finish": {end: sum(r.finish == end for r in ours) for end in ("end", "stop", "length")},
    }


def compare(part: Part, ours: Ours, harness: Any) -> dict[str, Any]:
    """Answer the questions of a part by both, and compare.

    Args:
        part: the questions.
        ours: the engine.
        harness: of `load_harness_model`, with the same weights.
    """
    asked = part.read()
    compared = compare_choices if part.kind == CHOICE else compare_answers
    samples = run_harness(harness, harness_task(asked, part.kind), part.count)
    found = compared(asked, ours.results(asked, part.kind), samples)
    settings = {
        "task": part.task,
        "kind": part.kind,
        "template": asked.task.template,
        "max_new_tokens": asked.task.max_new_tokens,
        "data": data_digest(asked.task, asked.path),
    }
    return settings | found


@click.command(context_settings={"show_default": True})
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder of agreement.jsonl and agreement.md; lines that are there are kept.",
)
@click.option("--score", multiple=True, metavar="TASK=N", default=("boolq=500", "piqa=500"))
@click.option("--generate", multiple=True, metavar="TASK=N", default=("gsm8k=50",))
@click.option("--max-new-tokens", default=128, help="Of a generated answer.")
@click.option(
    "--template",
    type=click.Choice(["alpaca", "gsm8k", "plain"]),
    default="alpaca",
    help="Of prompts that are answered by generation.",
)
@click.option("--data", multiple=True, metavar="TASK=PATH", help="Instead of the public corpora.")
@click.option("--model", default="default", help="Folder of the base model, or default.")
@click.option("--batch-size", default=16, help="Of the harness.")
def main(
    output: Path,
    score: Sequence[str],
    generate: Sequence[str],
    max_new_tokens: int,
    template: str,
    data: Sequence[str],
    model: str,
    batch_size: int,
) -> None:
    """Compare answers with lm-evaluation-harness."""
    require_harness()
    parts = parts_of(score, generate, data, max_new_tokens, template)
    folder = find_model(model)
    output.mkdir(parents=True, exist_ok=True)
    harness, ours = load_harness_model(folder, batch_size), Ours(folder)
    for part in parts:
        line = compare(part, ours, harness) | {"model": folder.name, **machine()}
        line["date"] = datetime.date.today().isoformat()
        append_line(output / "agreement.jsonl", line)
        click.echo(json.dumps(line), err=True)
    page = agreement_report(output / "agreement.jsonl")
    write_text(output / "agreement.md", page)
    click.echo(page)


def agreement_report(path: Path) -> str:
    """Return the page of a file of comparisons."""
    lines = read_lines(path)
    chosen = [
        [
            line["task"],
            f"{line['equal']} of {line['questions']}",
            f"{line['score']:.4f}, {line['harness_score']:.4f}",
            f"{line['equal_norm_with_white_space']} of {line['questions']}",
            f"{line['norm']:.4f}, {line['harness_norm']:.4f}",
            f"{line['largest_difference_nats']:.1e}",
        ]
        for line in lines
        if line["kind"] == CHOICE
    ]
    written = [
        [
            f"{line['task']}, {line['template']}, up to {line['max_new_tokens']} tokens",
            f"{line['equal']} of {line['questions']}",
            f"{line['equal_scores']} of {line['questions']}",
            f"{line['score']:.4f}, {line['harness_score']:.4f}",
            ", ".join(f"{end} {count}" for end, count in line["finish"].items()),
        ]
        for line in lines
        if line["kind"] == GENERATION
    ]
    last = lines[-1]
    versions = ", ".join(f"{name} {number}" for name, number in last["versions"].items())
    page = (
        "# Agreement with lm-evaluation-harness\n\n"
        f"{last['date']}; lm-evaluation-harness 0.4.13; {last['hardware']}; {versions}.\n"
        "Command: `python -m benchmarks.agreement --output FOLDER`\n\n"
        f"{last['model']}, fp32: the same files, weights and prompts. Scores are ours and the "
        "harness's. The harness scores the white space that ends a prompt with the answer; "
        "choice_norm is compared with it, and its own acc_norm is therefore another one than "
        "ours.\n\n"
    )
    if chosen:
        header = ["choices", "equal", "choice, acc", "norm equal", "choice_norm, acc_norm", "nats"]
        page += table(header, chosen) + "\n\n"
    if written:
        header = ["answers", "equal texts", "equal scores", "last_number, exact_match", "ends"]
        page += table(header, written) + "\n"
    return page


if __name__ == "__main__":
    with clean_errors():
        main()
