"""Which attention a model gets, and what is refused."""

from __future__ import annotations

import pytest

from diablo_ds.errors import UserError
from diablo_ds.model.architecture import build_meta_model
from diablo_ds.model.attention import choose_attention
from tests.tiny import FAMILIES


def test_attention_that_cannot_run_is_refused():
    meta_model = build_meta_model(FAMILIES["llama"])
    assert choose_attention("auto", meta_model, "bf16", "cpu", ()) == "sdpa"
    assert choose_attention("eager", meta_model, "bf16", "cpu", ()) == "eager"
    with pytest.raises(UserError, match="needs a GPU and half precision; got precision='bf16'"):
        choose_attention("flash_attention_2", meta_model, "bf16", "cpu", ())
    with pytest.raises(UserError, match="needs a GPU and half precision; got precision='fp32'"):
        choose_attention("flash_attention_2", meta_model, "fp32", "cuda", ())


def test_flash_attention_needs_its_package():
    meta_model = build_meta_model(FAMILIES["llama"])
    assert choose_attention("auto", meta_model, "bf16", "cuda", ()) == "sdpa"
    with pytest.raises(UserError, match="needs its package; got none installed"):
        choose_attention("flash_attention_2", meta_model, "bf16", "cuda", ())
