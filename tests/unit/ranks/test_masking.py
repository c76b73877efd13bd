from __future__ import annotations

import pytest

from diablo_ds.ranks.masking import hide_secrets

TOKEN = "hf_" + "a1B2" * 8


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        (f"HF_TOKEN={TOKEN}", "HF_TOKEN=***"),
        ("--env=WANDB_API_KEY=1234", "--env=WANDB_API_KEY=***"),
        ("HF_TOKEN='a b' apptainer exec", "HF_TOKEN=*** apptainer exec"),
        (f"--wrap=run --token {TOKEN}", "--wrap=run --token ***"),
        ("https://me:pw@example.org/d.json", "https://me:***@example.org/d.json"),
        ("of-this-process", "of-***"),
    ],
)
def test_secrets_are_hidden(word, shown):
    assert hide_secrets([word], {"MY_SECRET": "this-process"}) == [shown]


@pytest.mark.parametrize(
    "word",
    [
        "--micro-batch-tokens=4096",
        "NCCL_DEBUG=INFO",
        "--control-tokens",
        "prompt=Question",
        "org/hf_model",
        "short",
    ],
)
def test_other_words_stay(word):
    assert hide_secrets([word], {"MY_PASSWORD": "short", "HOME": "org/hf_model"}) == [word]
