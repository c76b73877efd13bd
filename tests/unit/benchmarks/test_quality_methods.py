"""Methods of the study: equal sizes, exact merges behind a permutation, trained heads, scores."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from benchmarks.quality.examples import Choice
from benchmarks.quality.methods import TrainedLossHead, lora_rank, target_layers, wanted_size
from benchmarks.quality.permuted import merged_weight, permute_inputs
from benchmarks.quality.scoring import score
from benchmarks.quality.spec import TARGETS, Spec
from diablo_ds.adapter.attach import attach, diablo_layers
from diablo_ds.data.batches import collate
from diablo_ds.model.loss import causal_lm_loss
from diablo_ds.model.loss_head import install_loss_head, loss_of
from tests.tiny import build_model, tiny_examples


def spec(method, num_blocks="4", **values):
    return Spec(
        method=method, num_blocks=num_blocks, rate=1e-3, global_batch=8, num_examples=8, **values
    )


def trained(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("targets", list(TARGETS))
@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("num_blocks", ["2", "3.7", "8"])
def test_loras_size_is_within_half_a_rank_of_diablos(method, targets, num_blocks):
    import peft

    model = build_model(hidden_size=128, intermediate_size=256)
    layers = target_layers(model, targets)
    own = spec(method, num_blocks, targets=targets)
    rank = lora_rank(own, layers)
    assert rank > 1
    config = peft.LoraConfig(r=rank, target_modules=list(layers), use_dora=method == "dora")
    peft.inject_adapter_in_model(config, model)
    per_rank = sum(layer.in_features + layer.out_features for layer in layers.values())
    assert abs(trained(model) - wanted_size(layers, num_blocks)) <= per_rank / 2


@pytest.mark.parametrize("num_blocks", ["4", "auto:0.1"])
def test_the_wanted_size_is_that_of_deltas(num_blocks):
    from diablo_ds.adapter.targets import resolve_num_blocks

    model = build_model()
    layers = target_layers(model, "default")
    size = wanted_size(layers, num_blocks)
    attach(model, resolve_num_blocks(layers, num_blocks))
    assert trained(model) == size


def test_named_targets_are_those_of_the_name():
    model = build_model()
    names = {
        targets: {name.rpartition(".")[2] for name in target_layers(model, targets)}
        for targets in TARGETS
    }
    assert names["default"] == {"q_proj", "k_proj", "v_proj", "up_proj", "down_proj"}
    assert names["attention"] | names["mlp"] == names["all-linear"]
    assert len(names["all-linear"]) == 7


@pytest.mark.parametrize("delta_path", ["fused", "summed", "prefilled"])
def test_a_permuted_delta_merges_exactly(delta_path):
    # Small whole numbers, whose products and sums are exact in fp32.
    draw = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.Linear(8, 12))
    for parameter in model.parameters():
        parameter.data = torch.randint(-4, 5, parameter.shape, generator=draw).float()
    plain = copy.deepcopy(model)
    attach(model, {"0": 2, "1": 4}, delta_path=delta_path)
    layers = diablo_layers(model)
    orders = permute_inputs(layers, seed=1)
    x = torch.randint(-4, 5, (5, 12), generator=draw).float()
    assert torch.equal(model(x), plain(x))  # deltas are zero
    for layer in layers.values():
        layer.delta.data = torch.randint(-4, 5, layer.delta.shape, generator=draw).float()
    expected = model(x)
    assert not torch.equal(expected, plain(x))
    for name, layer in layers.items():
        assert not torch.equal(orders[name], torch.arange(layer.in_features))
        plain.get_submodule(name).weight.data = merged_weight(layer, orders[name])
    assert torch.equal(plain(x), expected)


def test_a_permuted_block_has_random_channels():
    model = torch.nn.Sequential(torch.nn.Linear(12, 8, bias=False))
    model[0].weight.data.zero_()
    attach(model, {"0": 2})
    layer = diablo_layers(model)["0"]
    order = permute_inputs({"0": layer}, seed=1)["0"]
    layer.delta.data.fill_(1.0)
    first = layer.delta.shape[1]  # channels of the first block, which has the first outputs
    seen = merged_weight(layer, order)[0].nonzero().flatten()
    assert_close(seen.sort().values, order[:first].sort().values)


def batch_of(examples, rows):
    return collate([[examples[row]] for row in rows], pad_id=256)


def test_a_trained_head_gets_the_gradient_of_full_logits():
    examples = tiny_examples([("1+2=", "3"), ("what is this? ", "a longer answer")])
    batch = batch_of(examples, [0, 1])
    full, ours = build_model(), build_model()
    causal_lm_loss(full(batch.input_ids).logits, batch.labels).backward()
    assert install_loss_head(ours, build_model().to("meta"))
    ours.set_output_embeddings(TrainedLossHead(ours.get_output_embeddings()))
    loss_of(ours, batch).backward()
    names = [name for name, _ in full.named_parameters()]
    for name, (_, parameter) in zip(names, ours.named_parameters(), strict=True):
        assert_close(
            parameter.grad, full.get_parameter(name).grad, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("with_loss_head", [False, True])
def test_scores_are_those_of_each_example_alone(with_loss_head):
    texts = [("a question ", "answer 1."), ("b ", "answer 2."), ("why so long a text? ", "yes")]
    examples = tiny_examples(texts)
    model, tokens = build_model(), [tuple(map(ord, digits)) for digits in ("12", "21")]
    places = [len("a question answer "), len("b answer ")]
    choices = [Choice(place, own, 0) for place, own in zip(places, tokens, strict=True)]
    nats, answers = [], []
    with torch.no_grad():
        for number in range(3):
            batch = batch_of(examples, [number])
            logits = model(batch.input_ids).logits
            nats.append(float(causal_lm_loss(logits, batch.labels)))
            if number < 2:
                own = logits[0, places[number] - 1, list(tokens[number])]
                answers.append(int(own[0] > own[1]))
    if with_loss_head:
        install_loss_head(model, model)
    found = score(model, examples, choices, count=3, tokens=64, pad_id=256)
    assert_close(torch.tensor(found.nats), torch.tensor(nats), check_dtype=False)
    assert found.answers == answers
    assert found.num_targets == sum(len(answer) + 1 for _, answer in texts)
    assert model.training


def test_the_likeliest_choice_is_that_of_full_answers():
    examples = tiny_examples([("a question ", f"answer {n}.") for n in "1234"])
    model = build_model(seed=3)
    place = len("a question answer ")
    candidates = tuple(int(examples[number].input_ids[place]) for number in range(4))
    choices = [Choice(place, candidates, number) for number in range(4)]
    found = score(model, examples, choices, count=4, tokens=1000, pad_id=256)
    with torch.no_grad():
        logits = model(torch.tensor([list(examples[0].input_ids[:place])])).logits[0, -1]
    best = int(F.log_softmax(logits, dim=0)[list(candidates)].argmax())
    assert found.answers == [int(number == best) for number in range(4)]
