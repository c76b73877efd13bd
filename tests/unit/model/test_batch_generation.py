"""Batched answers are those of one row at a time, for every family that has default targets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers as hf

from diablo_ds.adapter.targets import DEFAULT_TARGETS
from diablo_ds.evaluation.engine import Engine
from diablo_ds.model.architecture import build_model
from diablo_ds.model.batch_rules import BatchLimits, BatchRules
from diablo_ds.model.forwards import Forwards
from diablo_ds.model.requests import ChoiceRequest, GenerationRequest
from tests.answers import answers, choice_requests, generation_requests, spread
from tests.tiny import tiny_tokenizer

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 264,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OWN = {
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8},
    "cohere2": {"sliding_window": 8, "num_hidden_layers": 4},
    "mistral": {"sliding_window": 8},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "qwen3": {"head_dim": 8},
}
"""What a family's config has besides; layers with windows are among them."""
OTHERS = {
    "experts": hf.GptOssConfig(**SHAPE, head_dim=8, num_local_experts=4, sliding_window=8),
    "latent attention": hf.DeepseekV3Config(
        **{**SHAPE, "num_key_value_heads": 4},
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        first_k_dense_replace=1,
    ),
    "absolute positions": hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=264),
    "biases by distance": hf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=264),
    "convolutions": hf.Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"]),
    "state space": hf.MambaConfig(
        hidden_size=32, num_hidden_layers=2, state_size=8, vocab_size=264
    ),
    "linear attention": hf.Qwen3NextConfig(
        **SHAPE,
        head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
}
ONE = BatchLimits(cache_tokens=1, forward_tokens=1, logit_rows=1, rows=1)
"""One row at a time."""
ALONE = BatchRules(
    pads_left=False, caches=False, extends=False, shares_opening=False, pads_right=False
)
"""And no cache."""
SIZES = {
    4: BatchLimits(cache_tokens=10_000, forward_tokens=60, logit_rows=60, rows=4),
    16: BatchLimits(cache_tokens=10_000, forward_tokens=1000, logit_rows=1000, rows=16),
}


def _config(family: str) -> hf.PreTrainedConfig:
    kind = hf.AutoConfig.for_model(family).__class__
    known = kind().to_dict()
    values = {name: value for name, value in SHAPE.items() if name in known}
    return kind(**{**values, **OWN.get(family, {})})


def _engine(config, limits, rules=None) -> Engine:
    torch.manual_seed(0)
    model = spread(build_model(config, torch.float32))
    return Engine(model, tiny_tokenizer().encoder.decode, limits=limits, rules=rules)


def _check_close(found, expected):
    """Texts and tokens are the same, log-likelihoods but for rounding."""
    assert found["generate"] == expected["generate"]
    for key, name in (("choose", "log_likelihoods"), ("losses", "nats")):
        for one, other in zip(found[key], expected[key], strict=True):
            assert one.pop(name) == pytest.approx(other[name], abs=1e-3)
            assert one.items() <= other.items()


@pytest.mark.parametrize("family", DEFAULT_TARGETS)
def test_a_family_answers_alike_in_batches_of_every_size(family):
    config = _config(family)
    alone = answers(_engine(config, ONE, ALONE))
    assert len({tuple(row["tokens"]) for row in alone["generate"]}) > 3
    with_cache = _engine(config, ONE)
    rules = with_cache.rules(64)
    # Nothing keeps this family from being batched; windows count padded columns.
    has_windows = getattr(config, "sliding_window", None) is not None
    assert rules == BatchRules(shares_opening=not has_windows)
    _check_close(answers(with_cache), alone)
    for limits in SIZES.values():
        _check_close(answers(_engine(config, limits, rules)), alone)


class _Watched(Forwards):
    """Forwards that note their batches: rows, tokens of a row, columns with those in the cache."""

    def __init__(self, model):
        super().__init__(model)
        self.seen = []

    def __call__(self, input_ids, **options):
        mask = options.get("mask")
        columns = input_ids.shape[1] if mask is None else mask.shape[1]
        self.seen.append((*input_ids.shape, columns))
        return super().__call__(input_ids, **options)


def test_batches_keep_to_their_limits_and_are_full():
    limits = BatchLimits(cache_tokens=300, forward_tokens=80, logit_rows=80, rows=8)
    engine = _engine(_config("llama"), limits, BatchRules())
    engine.forwards = _Watched(engine.forwards.model)
    answered = []
    requests = [replace(r, end_ids=frozenset()) for r in generation_requests(30)]
    engine.generate(requests, lambda index, answer: answered.append(index))
    assert sorted(answered) == list(range(30))
    for rows, tokens, columns in engine.forwards.seen:
        assert rows == 1 or rows * tokens <= limits.forward_tokens
        assert rows * columns <= limits.cache_tokens
        assert rows <= limits.rows
    steps = [rows for rows, tokens, _ in engine.forwards.seen if tokens == 1]
    assert sum(steps) / len(steps) > 4  # rows that end make room for others
    engine.forwards.seen.clear()
    engine.choose(choice_requests(30), lambda index, answer: None)
    for rows, tokens, columns in engine.forwards.seen:
        assert rows == 1 or (rows * tokens <= 80 and rows * columns <= 300)


def test_a_prompt_is_put_through_once_for_all_its_samples():
    first, second = (request.prompt for request in generation_requests(2))
    samples = [
        GenerationRequest(prompt, 12, temperature=1.0, seed=seed)
        for seed in range(4)
        for prompt in (first, second)
    ]
    alone, together = (_engine(_config("llama"), n, BatchRules()) for n in (ONE, SIZES[16]))
    together.forwards = _Watched(together.forwards.model)
    expected, found = {}, {}
    alone.generate(samples, expected.__setitem__)
    together.generate(samples, found.__setitem__)
    assert found == expected
    assert len({answer.tokens for answer in found.values()}) == 8
    assert [seen[0] for seen in together.forwards.seen[:2]] == [2, 8]


def test_a_prompt_is_put_through_once_for_all_its_choices():
    engine = _engine(_config("llama"), SIZES[16], BatchRules())
    engine.forwards = _Watched(engine.forwards.model)
    prompt = tuple(range(5, 25))
    engine.choose([ChoiceRequest(prompt, ((30, 31), (30, 32)))], lambda index, answer: None)
    assert engine.forwards.seen == [(1, 21, 21)]  # one forward, with the token that they share
    engine.forwards.seen.clear()
    choices = ((30, 31, 32), (33, 34), (35,))
    engine.choose([ChoiceRequest(prompt, choices)], lambda index, answer: None)
    assert engine.forwards.seen == [(1, 20, 20), (2, 2, 22)]


def test_what_all_prompts_begin_with_is_put_through_once_for_their_choices():
    engine = _engine(_config("llama"), SIZES[16], BatchRules())
    engine.forwards = _Watched(engine.forwards.model)
    opening, ends = tuple(range(5, 25)), ((50,), (51, 52, 53), (54, 55))
    choices = ((30, 31), (30, 32, 33), (34,))
    requests = [ChoiceRequest((*opening, *end), choices) for end in ends]
    found, alone = {}, {}
    engine.choose(requests, found.__setitem__)
    assert engine.forwards.seen[:2] == [(1, 20, 20), (3, 3, 23)]
    for index, request in enumerate(requests):
        _engine(_config("llama"), ONE, ALONE).choose(
            [request], lambda _, result, index=index: alone.__setitem__(index, result)
        )
    for index in alone:
        expected = pytest.approx(alone[index].log_likelihoods, abs=1e-4)
        assert found[index].log_likelihoods == expected
        assert found[index].is_greedy == alone[index].is_greedy


@pytest.mark.parametrize("kind", OTHERS)
def test_other_architectures_answer_alike_in_the_batches_that_are_proved(kind):
    config = OTHERS[kind]
    alone = answers(_engine(config, ONE, ALONE))
    _check_close(answers(_engine(config, SIZES[4])), alone)
