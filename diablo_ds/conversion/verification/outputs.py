"""Logits and greedy continuations of a merged model against base and adapter apart.

Both models are loaded one after the other and computed in fp32, so that they differ by two things:
the rounding of merged weights, and the order of fp32 sums. Their effect on logits is measured, not
guessed, by probes: the unmerged model computes once more while each merged weight ``w`` is moved by
``u w`` with a random sign, the largest rounding of the merged dtype (``u`` = 2^-8 for bf16, 2^-11
for fp16, 2^-24 for fp32, twice that for stochastic rounding), and each weight of a linear layer by
``sqrt(n) 2^-24 w``, which is how sums of ``n`` products in fp32 err (Higham and Mary, SIAM J. Sci.
Comput. 41, 2019).

A logit's change is, to first order, a sum over weights of independent errors ``e_i``, each within
``a_i = |dlogit/dw_i| u |w_i|``. Hoeffding's lemma makes it sub-Gaussian with variance at most
``sum a_i^2``, which is exactly the variance of a probe; rounding to nearest, whose errors are about
uniform, has a third of it. The largest change over all logits therefore stays below the largest of
a few probes, and the bound is twice that, more than three times what rounding alone gives. It is
exceeded where tensors, config or tokenizer differ, or where rounding errors are not independent: if
they swallow deltas that are smaller than half a step of the dtype, the change is that of a missing
part of the adapter.

Where the merge converted the base, too, the unmerged model's weights are converted likewise, but
for the diagonal blocks: what conversion changes is no error of the merge.

A token of the unmerged model's greedy continuation may be another's only where the two logits are
within twice the bound.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from diablo_ds.adapter.attach import attach, diablo_layers, load_deltas
from diablo_ds.adapter.base import is_linear
from diablo_ds.adapter.blocks import diagonal_blocks
from diablo_ds.adapter.layer import DiaBloLinear
from diablo_ds.conversion.verification.prompts import PROMPTS
from diablo_ds.data.text.tokenization import TOKENIZER_FILES, load_tokenizer
from diablo_ds.model.architecture import load_model_config
from diablo_ds.model.generation import continue_greedily
from diablo_ds.model.pretrained import from_pretrained

NUM_NEW_TOKENS = 8
NUM_PROBES = 3
_MARGIN = 2.0
_RANDOM_LENGTH = 12


@dataclass(frozen=True)
class OutputCheck:
    """How the outputs of two models compare."""

    difference: float
    """The largest difference of two logits."""
    bound: float
    """What rounding explains."""
    scale: float
    """The standard deviation of the logits."""
    num_equal: int
    """Tokens of greedy continuations that are the same."""
    num_tokens: int
    num_unexplained: int
    """Those that differ although their logits lie further apart than twice the bound."""

    @property
    def is_explained(self) -> bool:
        """Return whether rounding explains all differences."""
        return self.difference <= self.bound and not self.num_unexplained


@torch.no_grad()
def compare_outputs(
    base: Path,
    num_blocks: Mapping[str, int],
    deltas: Mapping[str, Tensor],
    merged: Path,
    u: float,
    device: torch.device,
    converted: Mapping[str, torch.dtype] = MappingProxyType({}),
    others: torch.dtype = torch.float32,
) -> OutputCheck:
    """Compare logits and greedy continuations on `PROMPTS`.

    Args:
        base: folder of the base model.
        num_blocks: block count of each layer with a delta.
        deltas: by parameter name, ``[num_blocks, in_block, out_block]``, fp32.
        merged: folder of the merged model.
        u: the largest relative error of a merged weight's rounding.
        device: where both are computed, one after the other.
        converted: new dtype of each stored tensor that the merge converted, by name.
        others: dtype of tensors that the model names differently from the files.

    Raises:
        UserError: if a folder does not hold a model, or no tokenizer that can be used.
    """
    model: Any = _load(base)
    attach(model, num_blocks)
    _convert(model, converted, others)
    load_deltas(model, deltas)
    model.to(device)
    prompts = _encode(merged, int(model.get_input_embeddings().num_embeddings))
    rows = [continue_greedily(model, prompt, NUM_NEW_TOKENS) for prompt in prompts]
    batch, is_token = _pad(rows, device)
    unmerged = _logits(model, batch, is_token)
    changes = []
    for probe in range(NUM_PROBES):
        with _moved_weights(model, u, probe):
            changes.append(float((_logits(model, batch, is_token) - unmerged).abs().max()))
    del model
    other: Any = _load(merged).to(device)
    found = _logits(other, batch, is_token)
    difference = float((found - unmerged).abs().nan_to_num(nan=torch.inf).max())
    bound = _MARGIN * max(changes)
    num_equal, num_tokens, unexplained = _compare_tokens(unmerged, found, rows, prompts, bound)
    scale = float(unmerged.std())
    return OutputCheck(difference, bound, scale, num_equal, num_tokens, unexplained)


def _load(folder: Path) -> Any:
    return from_pretrained(load_model_config(folder), folder, torch.float32, None).eval()


def _convert(model: nn.Module, converted: Mapping[str, torch.dtype], others: torch.dtype) -> None:
    """Round what a merge converted to another dtype: all but the diagonal blocks and the deltas."""
    layers = {id(layer.weight): layer for layer in diablo_layers(model).values()}
    deltas = {id(layer.delta) for layer in layers.values()}
    for name, parameter in model.named_parameters():
        if id(parameter) in deltas:
            continue
        layer = layers.get(id(parameter))
        blocks = diagonal_blocks(parameter, layer.num_blocks).clone() if layer else None
        parameter.copy_(parameter.to(converted.get(name, others)))
        if layer and blocks is not None:
            diagonal_blocks(parameter, layer.num_blocks).copy_(blocks)


def _encode(folder: Path, vocab_size: int) -> list[list[int]]:
    """Return prompts as token ids; random ones of a model without a tokenizer."""
    if any((folder / name).is_file() for name in TOKENIZER_FILES):
        tokenizer = load_tokenizer(folder)
        encoded = tokenizer.encoder.encode(list(PROMPTS), continues=False, parse_special=False)
        return [[*tokenizer.start_ids, *ids] for ids in encoded]
    generator = torch.Generator().manual_seed(0)
    shape = len(PROMPTS), _RANDOM_LENGTH
    ids: list[list[int]] = torch.randint(vocab_size, shape, generator=generator).tolist()
    return ids


def _pad(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return rows as ``[rows, longest]``, filled on the right, which no causal model looks at."""
    longest = max(map(len, rows))
    batch = torch.tensor([row + row[-1:] * (longest - len(row)) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return batch, torch.arange(longest, device=device) < lengths[:, None]


def _logits(model: Any, batch: Tensor, is_token: Tensor) -> Tensor:
    """Return the logits of tokens that are no filling, ``[tokens, vocab]``, fp32, on the CPU."""
    logits: Tensor = model(input_ids=batch, use_cache=False).logits
    return logits[is_token].float().cpu()


def _compare_tokens(
    unmerged: Tensor, found: Tensor, rows: list[list[int]], prompts: list[list[int]], bound: float
) -> tuple[int, int, int]:
    """Return how many tokens of the continuations are the same, of how many, and unexplained.

    While all tokens before are the same, the merged model's greedy token is that of the logits
    which it has on the other's continuation.
    """
    num_equal = num_unexplained = start = 0
    for row, prompt in zip(rows, prompts, strict=True):
        places = range(start + len(prompt) - 1, start + len(row) - 1)
        start += len(row)
        for place, token in zip(places, row[len(prompt) :], strict=True):
            choice = int(found[place].argmax())
            num_equal += choice == token
            gap = float(unmerged[place, token] - unmerged[place, choice])
            num_unexplained += choice != token and not gap <= 2 * bound
    return num_equal, len(rows) * NUM_NEW_TOKENS, num_unexplained


@contextlib.contextmanager
def _moved_weights(model: nn.Module, u: float, seed: int) -> Iterator[None]:
    """Let linear layers compute as if their weights were rounded at random; see this module.

    The weights themselves stay as they are: each layer adds what the change would.
    """
    targets = set(diablo_layers(model).values())
    linears = [m for m in model.modules() if m in targets or is_linear(m)]
    handles = []
    for number, layer in enumerate(linears):
        noise = _Noise(seed * len(linears) + number, u if layer in targets else 0.0)
        handles.append(layer.register_forward_hook(noise))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Noise:
    """Forward hook that adds the product with a layer's change."""

    def __init__(self, seed: int, u: float) -> None:
        self._seed = seed
        self._u = u

    def __call__(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (x,) = inputs
        generator = torch.Generator(x.device).manual_seed(self._seed)
        change = layer.weight * (layer.in_features**0.5 * 2.0**-24)
        if self._u and isinstance(layer, DiaBloLinear):
            weight: Any = layer.weight
            blocks = diagonal_blocks(weight, layer.num_blocks) + layer.delta
            diagonal_blocks(change, layer.num_blocks).add_(blocks * self._u)
        signs = torch.rand(change.shape, generator=generator, device=x.device) < 0.5
        change = torch.where(signs, change, -change)
        return output + x @ change.t()
