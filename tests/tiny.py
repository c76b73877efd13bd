"""Tiny random models, tokenizers and data: real classes, real files, no downloads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from diablo_ds.data.examples import Examples, TokenTable
from diablo_ds.data.labels import Example
from diablo_ds.data.text.templates import Segment
from diablo_ds.data.text.tokenization import EncodableText, HuggingFaceEncoder, Tokenizer

END = "<|end|>"
_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 264,
    "max_position_embeddings": 128,
}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**_SHAPE, num_key_value_heads=2, tie_word_embeddings=True),
    "mistral": MistralConfig(**_SHAPE, num_key_value_heads=2, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**_SHAPE, num_key_value_heads=2, tie_word_embeddings=True),
    "gpt_neox": GPTNeoXConfig(**_SHAPE, hidden_dropout=0.0, attention_dropout=0.0),
}

TWO_KINDS_OF_LAYERS = Gemma2Config(
    **_SHAPE, num_key_value_heads=2, head_dim=8, sliding_window=8, attn_logit_softcapping=20.0
)
"""A family whose layers attend in turn to a window and to all."""


LONG_ROPE = Phi3Config(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=300,
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=1,
    max_position_embeddings=128,
    original_max_position_embeddings=32,
    rope_parameters={
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "short_factor": [1.0 + i / 8 for i in range(8)],
        "long_factor": [4.0 + i for i in range(8)],
        "original_max_position_embeddings": 32,
    },
)
"""A model that must not be padded: its positions depend on the longest row of a micro batch."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: one token per byte, an end token, no BOS, no pad."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)} | {END: len(alphabet)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def tiny_tokenizer() -> Tokenizer:
    """The byte-level tokenizer in the form that data is made with; its end token is 256."""
    tokenizer = byte_tokenizer()
    encoder = HuggingFaceEncoder(tokenizer.backend_tokenizer.to_str())
    return Tokenizer(encoder, (), tokenizer.eos_token_id, tokenizer.eos_token_id)


def encode_pairs(pairs: Sequence[tuple[str, str]]) -> list[Example]:
    """Tokenise prompts and completions."""
    texts = [EncodableText((Segment(p, False), Segment(c, True))) for p, c in pairs]
    return tiny_tokenizer().encode(texts)


def tiny_examples(pairs: Sequence[tuple[str, str]]) -> Examples:
    """Tokenise prompts and completions to examples with random access."""
    table = TokenTable.from_examples(encode_pairs(pairs))
    return Examples(table, np.arange(len(table)), table.lengths(), "tiny")


def build_model(family: str = "llama", *, seed: int = 0, **changes: float) -> torch.nn.Module:
    """A random causal LM in fp32, in training mode."""
    known = FAMILIES | {"gemma2": TWO_KINDS_OF_LAYERS}
    config = known[family].__class__.from_dict({**known[family].to_dict(), **changes})
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).float().train()


def save_model(folder: Path, family: str = "llama", **changes: float) -> Path:
    """Save a tiny model with its tokenizer, as a user would have it on disk."""
    build_model(family, **changes).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def write_pairs(path: Path, count: int = 24, *, seed: int = 0) -> Path:
    """Write rows of very unequal length: an addition, and its answer repeated."""
    generator = torch.Generator().manual_seed(seed)
    lines = []
    for _ in range(count):
        a, b, repeats = torch.randint(1, 10, (3,), generator=generator).tolist()
        row = {"prompt": f"{a}+{b}=", "completion": " ".join([str(a + b)] * repeats)}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")
    return path
