"""The tokens with which a trained model ends its answers, for programs that generate with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diablo_ds.data.text.tokenization import Tokenizer
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json

GENERATION_CONFIG_FILE = "generation_config.json"


class EndTokens(NamedTuple):
    """Tokens at which the base model stops, and at which it learns to stop."""

    base: tuple[int, ...]
    """Those of the base model's generation config, otherwise its tokenizer's."""
    learnt: tuple[int, ...]
    """Those that end the training examples."""
    texts: Mapping[int, str]
    """Text of each token, by id."""

    @property
    def all(self) -> list[int]:
        """All tokens at which generation must stop, the learnt ones first."""
        return list(dict.fromkeys([*self.learnt, *self.base]))

    def describe(self) -> str:
        """Return a line for the user if the two differ; otherwise an empty text."""
        if set(self.learnt) <= set(self.base):
            return ""
        return (
            f"Answers end with {self._list(self.learnt)}, where the base model ends with "
            f"{self._list(self.base)}: {GENERATION_CONFIG_FILE} of the adapter names both, and "
            "generation must stop at either"
        )

    def _list(self, ids: tuple[int, ...]) -> str:
        return " or ".join(f"{self.texts.get(i, 'token')} ({i})" for i in ids)


def find_end_tokens(
    tokenizer: Tokenizer, learnt: frozenset[int], model_folder: Path, model_config: Any
) -> EndTokens:
    """Compare the tokens that end training examples with those of the base model.

    Args:
        tokenizer: the model's tokenizer.
        learnt: the last tokens with loss of training examples; only control tokens count.
        model_folder: the base model's folder.
        model_config: its Hugging Face config.

    Raises:
        UserError: if the generation config is damaged.
    """
    own = _generation_config(model_folder).get("eos_token_id")
    if own is None:
        own = getattr(model_config.get_text_config(), "eos_token_id", None)
    base = own if isinstance(own, list) else [own]
    ids = tuple(i for i in base if isinstance(i, int)) or (tokenizer.end_id,)
    return EndTokens(
        ids,
        tuple(sorted(learnt & (tokenizer.control.ids | {tokenizer.end_id}))),
        {token.id: token.text for token in tokenizer.control.tokens},
    )


def generation_config(ends: EndTokens, model_folder: Path) -> dict[str, Any]:
    """Return the base model's generation config with all end tokens."""
    return {**_generation_config(model_folder), "eos_token_id": ends.all}


def _generation_config(model_folder: Path) -> dict[str, Any]:
    """Return the base model's generation config; empty if it has none."""
    path = model_folder / GENERATION_CONFIG_FILE
    value = read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise UserError(f"{GENERATION_CONFIG_FILE} must be a JSON object; got {path}")
    return value


def read_end_ids(path: Path) -> set[int]:
    """Return the end tokens that a generation config names; none where there is no such file."""
    value = read_json(path) if path.is_file() else {}
    ends = value.get("eos_token_id") if isinstance(value, dict) else None
    return {i for i in (ends if isinstance(ends, list) else [ends]) if type(i) is int}
