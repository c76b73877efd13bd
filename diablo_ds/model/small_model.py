"""Tiny random models with the features of a large one: every kind of layer, at small widths.

All widths are divided by one number and all counts of heads, groups and experts are kept, so that
whatever ratio a model's code relies on still holds. Lengths (positions, windows) are divided by
another, so that a short row stands for a long one. Nothing here knows an architecture: which
division is legal is found by trying.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from diablo_ds.errors import UserError
from diablo_ds.model.architecture import build_meta_model, build_model, text_decoder
from diablo_ds.model.attention import FLASH_ATTENTION, register_attention_by_length
from diablo_ds.model.varlen import VARLEN, register_varlen_attention

MOST_PARAMETERS = 120_000_000
"""Of a small model: a forward of a few short rows then takes about a tenth of a second."""
_VOCAB_SIZE = 320
_MOST_EXPERTS = 16
_DIVISORS = (64, 32, 16, 8, 4, 2, 1)
_LEAST_HEAD = 8
"""Width of an attention head below which rotary embeddings have no room."""
_LENGTHS = re.compile(r"position|window|seq_?len|max_length|context|^n_ctx$|chunk_size|block_size")
_COUNTS = re.compile(
    r"(?<!d_)heads?$|layers?$|groups?$|experts?|_tok|top_?k|kernel|period|offset|interval|_every|index|"
    r"indices|_id$|_ids$|theta|seed|pattern|version|beams|num_|^n_(?!embd|inner)|vocab|bits|"
    r"buckets|iterations|repeat|depth|bos|eos|pad"
)
_MULTIMODAL = re.compile(r"vision|visual|audio|image|video|speech")


def small_configs(model_config: Any, *, max_length: int, row_length: int) -> Iterator[Any]:
    """Yield configs of small models that have a config's features, the smallest widths first.

    Not each of them has to be legal.

    Args:
        model_config: the model's Hugging Face config.
        max_length: tokens of the longest row in the run.
        row_length: tokens of a row that shall stand for it.
    """
    text = model_config.get_text_config()
    head_dim = _head_dim(text)
    least, total = _layers_of_every_kind(model_config), int(text.num_hidden_layers)
    # More where one layer of a kind is not enough, such as to share its weights with another.
    for num_layers in sorted({least, min(2 * least, total), min(3 * least, total), total}):
        for divisor in _DIVISORS:
            if divisor > 1 and head_dim // divisor < _LEAST_HEAD:
                continue
            try:
                yield _shrunk(
                    model_config, num_layers, divisor, row_length / max_length, row_length
                )
            except Exception:  # whatever the class of the config raises for values that do not fit
                continue


def _head_dim(text: Any) -> int:
    own = text.to_dict().get("head_dim")
    if isinstance(own, int) and own > 0:
        return own
    hidden, heads = text.hidden_size, getattr(text, "num_attention_heads", None)
    return int(hidden // heads) if isinstance(heads, int) and heads > 0 else int(hidden)


# --- layers --------------------------------------------------------------------------------------


def _layers_of_every_kind(model_config: Any) -> int:
    """Return how many of the first layers hold every kind of layer that the model has."""
    total = int(model_config.get_text_config().num_hidden_layers)
    stacks = [
        module
        for module in text_decoder(build_meta_model(model_config)).modules()
        if isinstance(module, nn.ModuleList) and len(module) == total
    ]
    if not stacks:
        return total
    kinds = [tuple(_kind(stack[i]) for stack in stacks) for i in range(total)]
    missing = set(kinds)
    for count, kind in enumerate(kinds, 1):
        missing.discard(kind)
        if not missing:
            return min(total, max(2, count))
    return total


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    """Return what tells a layer from those of another kind: its structure and its settings."""
    parts: list[Any] = []
    for name, module in layer.named_modules():
        settings = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, bool | int | str | None) and not re.search(r"idx|index|_id$", key)
        }
        shapes = [(n, tuple(p.shape)) for n, p in module.named_parameters(recurse=False)]
        parts.append((name, type(module), tuple(sorted(settings.items(), key=str)), tuple(shapes)))
    return tuple(parts)


# --- values --------------------------------------------------------------------------------------


def _shrunk(model_config: Any, num_layers: int, divisor: int, share: float, row_length: int) -> Any:
    text = model_config.get_text_config()
    values = copy.deepcopy(model_config.to_dict())
    shrink = _Shrink(
        old_layers=int(text.num_hidden_layers),
        num_layers=num_layers,
        divisor=divisor,
        share=share,
        row_length=row_length,
        vocab_size=min(_VOCAB_SIZE, int(text.vocab_size)),
    )
    values = {name: shrink.value(name, value) for name, value in values.items()}
    for name in ("torch_dtype", "dtype", "quantization_config", "transformers_version"):
        values.pop(name, None)
    small = type(model_config).from_dict(values)
    text = small.get_text_config()
    text.num_hidden_layers = num_layers
    return small


class _Shrink:
    def __init__(
        self,
        *,
        old_layers: int,
        num_layers: int,
        divisor: int,
        share: float,
        row_length: int,
        vocab_size: int,
    ) -> None:
        self.old_layers, self.num_layers = old_layers, num_layers
        self.divisor, self.share, self.row_length = divisor, share, row_length
        self.vocab_size = vocab_size

    def value(self, name: str, value: Any) -> Any:
        """Return what a setting becomes; nested ones too."""
        if isinstance(value, dict):
            inner = self._no_text if _MULTIMODAL.search(name) else self.value
            return {key: inner(str(key), part) for key, part in value.items()}
        if isinstance(value, bool) or value is None or isinstance(value, float):
            return value
        if isinstance(value, str):
            return self._per_layer(value) if "pattern" in name else value
        if isinstance(value, list | tuple):
            return self._list(name, list(value))
        return self._number(name, int(value)) if isinstance(value, int) else value

    def _no_text(self, name: str, value: Any) -> Any:
        """Return a setting of a tower for other inputs, which text never enters: one layer."""
        if re.search(r"^(num_hidden_layers|depth|n_layers?|num_layers)$", name):
            return 1
        if isinstance(value, bool) or not isinstance(value, int) or value % self.divisor:
            return value
        is_width = not _COUNTS.search(name) and not _LENGTHS.search(name)
        is_width = is_width and not re.search(r"image|patch|spatial|temporal|channels", name)
        return value // self.divisor if is_width and value >= 2 * self.divisor else value

    def _per_layer(self, values: Any) -> Any:
        return values[: self.num_layers] if len(values) == self.old_layers else values

    def _list(self, name: str, values: list[Any]) -> Any:
        if name.endswith("_factor"):  # one for each frequency of the rotary embedding
            return values[:: self.divisor]
        if name.endswith("section"):  # of those frequencies
            return _divided_parts(values, self.divisor)
        inner = self._per_layer(values)
        if all(isinstance(v, int) and not isinstance(v, bool) for v in inner) and inner:
            if re.search(r"_ids?$|token", name):
                return [min(v, self.vocab_size - 1) for v in inner]
            if len(values) == self.old_layers:
                return [self._number(name, v) for v in inner]
        return inner

    def _number(self, name: str, value: int) -> int:
        if "vocab" in name:
            return min(value, self.vocab_size)
        if re.search(r"_token_id$|^(bos|eos|pad)", name):
            return min(value, self.vocab_size - 1)
        if re.search(r"^(num_hidden_layers|n_layers?|num_layers)$", name):
            return self.num_layers
        if _LENGTHS.search(name):
            return self._length(value)
        if re.search(r"experts?$", name):
            return min(value, _MOST_EXPERTS)
        if value < 2 * self.divisor or _COUNTS.search(name):
            return value
        return max(1, value // self.divisor)

    def _length(self, value: int) -> int:
        """Return a length that a row exceeds if, and only if, the run's rows exceed its own."""
        if value <= 0:
            return value
        scaled = value * self.share
        if scaled >= self.row_length:
            return int(-(-scaled // 1))
        return max(1, int(scaled))


def _divided_parts(parts: list[Any], divisor: int) -> list[Any]:
    total = sum(parts) // divisor
    divided = [max(1, part // divisor) for part in parts]
    divided[0] += total - sum(divided)
    return divided


# --- the model -----------------------------------------------------------------------------------


def build_small_model(model_config: Any, attention: str, *, seed: int = 0) -> Any:
    """Build a causal LM in fp32 on the CPU, in evaluation mode, that mixes its tokens strongly.

    As they are initialised, models attend to all tokens about equally and many start with gates
    that are shut; so matrices are drawn anew.

    Args:
        model_config: its Hugging Face config.
        attention: transformers' name of the attention. FlashAttention, which needs a GPU, is
            replaced by what it computes.
        seed: of its weights.

    Raises:
        UserError: if the config is not legal, or not that of a small model.
    """
    num_parameters = sum(p.numel() for p in build_meta_model(model_config).parameters())
    if num_parameters > MOST_PARAMETERS:
        raise UserError(f"a small model must be small; got {num_parameters:,} parameters")
    generator = torch.Generator().manual_seed(seed)
    by_length = attention.startswith(FLASH_ATTENTION)
    if attention == VARLEN:
        register_varlen_attention()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(model_config, torch.float32, "" if by_length else attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2 and parameter.is_floating_point():
                std = parameter.shape[-1] ** -0.5
                parameter.normal_(0, std, generator=generator)
    if by_length:
        model.config.get_text_config()._attn_implementation = register_attention_by_length()
    model.config.use_cache = False
    return model.float().eval()
