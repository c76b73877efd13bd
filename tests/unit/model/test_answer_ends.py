"""Where answers end, and how tokens are drawn."""

from __future__ import annotations

import collections

import pytest
import torch

from diablo_ds.model.batch_generation import generate
from diablo_ds.model.batch_rules import BatchLimits, BatchRules
from diablo_ds.model.forwards import Outputs
from diablo_ds.model.requests import GenerationRequest
from diablo_ds.model.sampling import choose_tokens, draws
from diablo_ds.model.stop_strings import StopStrings

PIECES = ["<s>", " the", " an", "swer", ":", "\n", "\n\n", "Qu", "estion", "\u00e9", " 4"]


def _decode(ids):
    """Decode as SentencePiece does: a text begins without its first space."""
    return "".join(PIECES[i] for i in ids).removeprefix(" ")


class _Script:
    """Stands for a model that gives a fixed answer to the prompt of one token, by position."""

    device = torch.device("cpu")

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, ids, **options):
        logits = torch.zeros(1, 1, len(PIECES))
        logits[0, 0, self.answer[ids.shape[1] - 1]] = 1
        return Outputs(logits, None)


def _answer(answer, **options):
    request = GenerationRequest((4,), **{"max_new_tokens": len(answer), **options})
    limits = BatchLimits(100, 100, 100, 1)
    found = []
    generate(
        _Script(answer),
        [request],
        _decode,
        lambda index, result: found.append(result),
        limits=limits,
        rules=BatchRules(caches=False),
    )
    return found[0]


@pytest.mark.parametrize(
    ("answer", "stops", "text", "num_tokens", "finish"),
    [
        ([1, 2, 3, 0], (), " the answer", 3, "end"),
        ([1, 2, 3], (), " the answer", 3, "length"),
        ([1, 2, 3, 5, 7, 8, 4], ("\nQuestion:",), " the answer", 7, "stop"),  # over four tokens
        ([1, 6, 2, 3], ("\n",), " the", 2, "stop"),  # inside one token, the rest is cut
        ([2, 3, 1], ("swer the", " answer"), "", 2, "stop"),  # the earliest place counts
        ([1, 2, 3, 4], (" the answer:!",), " the answer:", 4, "length"),
        ([9, 9, 1], ("\u00e9\u00e9",), "", 2, "stop"),
    ],
)
def test_an_answer_ends_where_it_should(answer, stops, text, num_tokens, finish):
    found = _answer(answer, stops=stops, end_ids=frozenset({0}))
    assert (found.text, len(found.tokens), found.finish) == (text, num_tokens, finish)


def test_a_stop_string_is_of_the_answer_not_of_the_prompt():
    stops = StopStrings(("\n\n",), (5,), _decode)
    assert stops.text_before_stop([5]) is None
    assert stops.text_before_stop([5, 5]) == ""


def _drawn(logits, seeds, **options):
    requests = [GenerationRequest((1,), 1, temperature=1.0, seed=seed, **options) for seed in seeds]
    uniforms = [float(draws(request)[0]) for request in requests]
    return choose_tokens(logits.expand(len(requests), -1), requests, uniforms)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    likely = torch.tensor([0.5, 0.05, 0.3, 0.15])
    counts = collections.Counter(_drawn(likely.log(), range(4000)))
    for token, share in enumerate(likely.tolist()):
        assert counts[token] / 4000 == pytest.approx(share, abs=0.03)


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p():
    likely = torch.tensor([0.5, 0.05, 0.3, 0.15])
    counts = collections.Counter(_drawn(likely.log(), range(2000), top_p=0.75))
    assert set(counts) == {0, 2}
    assert counts[0] / 2000 == pytest.approx(0.5 / 0.8, abs=0.04)
    assert set(_drawn(likely.log(), range(200), top_p=1e-9)) == {0}


def test_a_draw_depends_on_its_own_seed_alone():
    logits = torch.randn(264, generator=torch.Generator().manual_seed(0))
    together = _drawn(logits, range(16))
    assert together == [_drawn(logits, [seed])[0] for seed in range(16)]
    assert len(set(together)) > 4
