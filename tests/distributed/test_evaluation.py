"""Answers of several ranks, with full copies or with shards, are those of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diablo_ds.evaluation.engine import Engine
from diablo_ds.evaluation.models import open_models
from diablo_ds.model import shared_answers
from diablo_ds.model.batch_rules import BatchLimits, BatchRules
from diablo_ds.zero.joining import init_process_group
from tests.answers import answers, generation_requests, save_base_and_adapter, spread
from tests.distributed.runner import run_distributed
from tests.tiny import build_model

pytestmark = pytest.mark.distributed

NAMES = ("base", "tuned", "base")
SMALL = BatchLimits(cache_tokens=150, forward_tokens=60, logit_rows=60, rows=2)


def _answers_of_all(
    base: Path, adapter: Path, placement: str, limits: BatchLimits | None
) -> list[dict[str, Any]]:
    """Ask base, adapter, and the base once more."""
    models = open_models(base=str(base), adapters=[adapter], precision="fp32", placement=placement)
    assert any("sharded over 2 ranks" in note for note in models.notes) == (placement == "sharded")
    found = []
    for name in NAMES:
        with models.use(name) as model:
            model.engine._limits = limits
            found.append(answers(model.engine))
    return found


def _ask(rank: int, base: Path, adapter: Path, folder: Path) -> None:
    init_process_group()
    seldom, always = shared_answers.EXCHANGE_S, 0.0
    for placement, limits in (("copies", None), ("sharded", SMALL)):
        # Answers are exchanged at the end, and where shards are used ahead of each forward too.
        shared_answers.EXCHANGE_S = always if placement == "sharded" else seldom
        found = _answers_of_all(base, adapter, placement, limits)
        (folder / f"{placement}-{rank}.json").write_text(json.dumps(found))


def test_ranks_answer_as_one_process_does(tmp_path):
    base, adapter = save_base_and_adapter(tmp_path)
    alone = json.loads(json.dumps(_answers_of_all(base, adapter, "auto", None)))
    assert alone[0] == alone[2]
    assert alone[0]["generate"] != alone[1]["generate"]
    run_distributed(_ask, 2, tmp_path, base, adapter, tmp_path)
    for placement in ("copies", "sharded"):
        for rank in range(2):
            found = json.loads((tmp_path / f"{placement}-{rank}.json").read_text())
            for mine, other in zip(found, alone, strict=True):
                assert mine["generate"] == other["generate"]
                _check_close(mine["choose"], other["choose"], "log_likelihoods")
                _check_close(mine["losses"], other["losses"], "nats")
            if placement == "sharded":
                assert found[0] == found[2]


def _take_turns(rank: int) -> None:
    """Answers of the other rank are there before a rank is done with its own."""
    shared_answers.EXCHANGE_S = 0.0
    requests = generation_requests(16)
    lengths = [len(request.prompt) + request.max_new_tokens for request in requests]
    mine = set(sorted(range(16), key=lambda index: (-lengths[index], index))[rank::2])
    for in_step in (False, True):
        engine = Engine(
            spread(build_model()), lambda ids: "", in_step=in_step, limits=SMALL, rules=BatchRules()
        )
        order: list[int] = []
        engine.generate(requests, lambda index, answer, order=order: order.append(index))
        assert sorted(order) == list(range(16))
        others = [index not in mine for index in order]
        assert others.index(True) < len(others) - 1 - others[::-1].index(False)


def test_the_answers_of_all_ranks_are_known_while_they_work(tmp_path):
    run_distributed(_take_turns, 2, tmp_path)


def _fail_on_one(rank: int) -> None:
    """One rank fails between two forwards; the others end with a sentence, none waits forever."""

    def decode(ids: Any) -> str:
        if rank == 1:
            raise ValueError("unreadable")
        return ""

    engine = Engine(spread(build_model()), decode, in_step=True, limits=SMALL, rules=BatchRules())
    expected = {0: (RuntimeError, "got a failure on rank 1"), 1: (ValueError, "unreadable")}
    error, message = expected[rank]
    with pytest.raises(error, match=message):
        engine.generate(generation_requests(), lambda index, answer: None)

    def take(index: int, answer: Any) -> None:
        if rank == 1:
            raise OSError("unreadable")

    shared_answers.EXCHANGE_S = 0.0
    engine = Engine(spread(build_model()), str, in_step=True, limits=SMALL, rules=BatchRules())
    kind, message = {0: expected[0], 1: (OSError, "unreadable")}[rank]
    with pytest.raises(kind, match=message):
        engine.generate(generation_requests(), take)


def test_a_failure_between_forwards_ends_all_ranks(tmp_path):
    run_distributed(_fail_on_one, 2, tmp_path)


def _check_close(mine: list[dict[str, Any]], other: list[dict[str, Any]], key: str) -> None:
    for one, two in zip(mine, other, strict=True):
        assert one.pop(key) == pytest.approx(two[key], abs=1e-4)
        assert one.items() <= two.items()
