"""Rows of one batch with different adapters, against a loop of layers with one adapter each."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from diablo_ds.adapter.batched import (
    FORMULATIONS,
    NO_ADAPTER,
    add_chosen_deltas,
    stack_deltas,
)
from diablo_ds.adapter.layer import DiaBloLinear
from diablo_ds.errors import UserError

NUM_BLOCKS, IN, OUT = 3, 12, 6
CHOICE = torch.tensor([2, -1, 0, 0, 2, -1, 0])


def _integers(*shape, dtype=torch.float64):
    """Whole numbers, whose sums and products are exact in any order."""
    return torch.randint(-8, 9, shape).to(dtype)


def _layers(count=3, dtype=torch.float64):
    """Layers with one base and a delta each, and their base."""
    base = torch.nn.Linear(IN, OUT, dtype=dtype)
    with torch.no_grad():
        base.weight.copy_(_integers(OUT, IN))
        base.bias.copy_(_integers(OUT))
    layers = [DiaBloLinear(base, num_blocks=NUM_BLOCKS) for _ in range(count)]
    for layer in layers:
        layer.delta.data.copy_(_integers(*layer.delta.shape))
    return layers, base


def _by_loop(x, layers, base, choice=CHOICE):
    rows = zip(x, choice.tolist(), strict=True)
    return torch.stack([(base if c == NO_ADAPTER else layers[c])(row) for row, c in rows])


@pytest.mark.parametrize("formulation", ["auto", *FORMULATIONS])
@pytest.mark.parametrize("middle", [(), (1,), (5,), (2, 3)], ids=str)
def test_each_row_is_exactly_that_of_a_layer_with_its_adapter(formulation, middle):
    layers, base = _layers()
    x = _integers(len(CHOICE), *middle, IN)
    deltas = stack_deltas([layer.delta for layer in layers])
    y = base(x)
    before = y.clone()
    out = add_chosen_deltas(y, x, deltas, CHOICE, formulation=formulation)
    assert torch.equal(out, _by_loop(x, layers, base))
    assert torch.equal(y, before)
    with torch.no_grad():
        written = add_chosen_deltas(y, x, deltas, CHOICE, formulation=formulation, inplace=True)
    assert written is y
    assert torch.equal(y, out)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_gradients_are_those_of_the_loop(formulation):
    layers, base = _layers()
    x = _integers(len(CHOICE), 4, IN).requires_grad_()
    grad = _integers(len(CHOICE), 4, OUT)
    y = F.linear(x, base.weight, base.bias)
    deltas = torch.stack([layer.delta.detach() for layer in layers]).requires_grad_()
    add_chosen_deltas(y, x, deltas, CHOICE, formulation=formulation).backward(grad)
    found, x.grad = x.grad, None
    _by_loop(x, layers, base).backward(grad)
    assert torch.equal(found, x.grad)
    grads = [layer.delta.grad for layer in layers]
    assert grads[1] is None  # nobody chose it
    grads[1] = torch.zeros_like(layers[1].delta)
    assert torch.equal(deltas.grad, torch.stack(grads))


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_gradients_agree_with_finite_differences(formulation):
    y, x = torch.randn(3, 2, OUT, dtype=torch.float64), torch.randn(3, 2, IN, dtype=torch.float64)
    deltas = torch.randn(2, NUM_BLOCKS, 4, 2, dtype=torch.float64)
    choice = torch.tensor([1, -1, 1])
    operands = tuple(t.requires_grad_() for t in (y, x, deltas))

    def function(*tensors):
        return add_chosen_deltas(*tensors, choice, formulation=formulation)

    assert torch.autograd.gradcheck(function, operands)
    # A gradient whose elements share memory, as that of a sum.
    function(*operands).sum().backward()


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_tensors_that_are_not_contiguous(formulation):
    layers, base = _layers()
    x = _integers(IN, 5, len(CHOICE)).permute(2, 1, 0)
    y = base(x).permute(1, 2, 0).contiguous().permute(2, 0, 1)
    deltas = torch.stack([layer.delta.detach() for layer in layers], dim=3).permute(3, 0, 1, 2)
    spread = torch.stack([CHOICE, CHOICE], dim=1)[:, 0]
    assert not any(t.is_contiguous() for t in (x, y, deltas, spread))
    wanted = _by_loop(x, layers, base)
    assert torch.equal(add_chosen_deltas(y, x, deltas, spread, formulation=formulation), wanted)
    add_chosen_deltas(y, x, deltas, spread, formulation=formulation, inplace=True)
    assert torch.equal(y, wanted)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_deltas_in_fp32_on_a_base_in_bf16(formulation):
    layers, base = _layers(dtype=torch.bfloat16)
    x = _integers(len(CHOICE), 2, IN, dtype=torch.bfloat16)
    deltas = torch.stack([layer.delta.float() for layer in layers])
    out = add_chosen_deltas(base(x), x, deltas, CHOICE, formulation=formulation)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, _by_loop(x, layers, base))


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_nothing_to_add(formulation):
    deltas = torch.ones(2, NUM_BLOCKS, 4, 2)
    for batch, tokens in ((0, 3), (2, 0)):
        y, x = torch.ones(batch, tokens, OUT), torch.ones(batch, tokens, IN)
        choice = torch.zeros(batch, dtype=torch.int64)
        assert add_chosen_deltas(y, x, deltas, choice, formulation=formulation).shape == y.shape
    y, x = torch.randn(2, OUT), torch.randn(2, IN)
    nobody = torch.tensor([-1, -1])
    for stacked in (deltas, deltas[:0]):
        assert torch.equal(add_chosen_deltas(y, x, stacked, nobody, formulation=formulation), y)


def test_an_adapter_that_nobody_chose_is_not_read_on_a_cpu():
    deltas = torch.ones(2, NUM_BLOCKS, 4, 2)
    deltas[0] = torch.nan
    y = add_chosen_deltas(torch.ones(2, OUT), torch.ones(2, IN), deltas, torch.tensor([1, -1]))
    assert y.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"deltas": torch.ones(NUM_BLOCKS, 4, 2)}, "deltas must have the shape"),
        ({"x": torch.ones(2, IN + 1)}, "x and y must be"),
        ({"y": torch.ones(1, OUT)}, "x and y must be"),
        ({"choice": torch.tensor([0])}, "one element per row"),
        ({"choice": torch.tensor([0.0, 1.0])}, "int64"),
        ({"choice": torch.tensor([0, 2])}, "from 0 to 2 with num_adapters=2"),
        ({"choice": torch.tensor([0, -2])}, "from -2 to 0"),
        ({"choice": torch.tensor([0, 0], device="meta")}, "on the device of x"),
        ({"formulation": "fastest"}, "formulation must be"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_belong_together_is_refused(changes, rule):
    given = {
        "y": torch.ones(2, OUT),
        "x": torch.ones(2, IN),
        "deltas": torch.ones(2, NUM_BLOCKS, 4, 2),
        "choice": torch.tensor([0, 1]),
    }
    with pytest.raises(UserError, match=rule):
        add_chosen_deltas(**given | changes)


@pytest.mark.parametrize("tokens", [1, 512])
def test_off_the_cpu_the_host_reads_no_values(tokens):
    """Tensors on "meta" have none: whatever waits for a value of a GPU's is an error on them."""
    x = torch.ones(8, tokens, IN, device="meta", requires_grad=True)
    y = torch.ones(8, tokens, OUT, device="meta")
    deltas = stack_deltas([torch.ones(NUM_BLOCKS, 4, 2, device="meta") for _ in range(3)])
    choice = torch.zeros(8, dtype=torch.int64, device="meta")
    out = add_chosen_deltas(y, x, deltas.requires_grad_(), choice)
    out.sum().backward()
    assert (x.grad.shape, deltas.grad.shape) == (x.shape, deltas.shape)
    with pytest.raises(RuntimeError, match="meta"):
        add_chosen_deltas(y, x, deltas, choice, formulation="grouped")


# Dynamo itself makes an instance of an autograd function, which PyTorch deprecates.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_it_is_the_same():
    layers, base = _layers()
    x, deltas = _integers(len(CHOICE), 2, IN), torch.stack([la.delta.detach() for la in layers])

    def function(x, choice):
        return add_chosen_deltas(F.linear(x, base.weight, base.bias), x, deltas, choice)

    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, CHOICE), function(x, CHOICE))
