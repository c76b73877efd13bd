"""A merged folder is served by vLLM, which does not know DiaBlo: same greedy tokens, by HTTP.

vLLM needs an environment of its own. `DIABLO_TEST_VLLM` names a Python that has it.
"""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from diablo_ds.adapter.storage import AdapterConfig, save_adapter
from diablo_ds.model.finding import fingerprint
from diablo_ds.ranks.free_port import free_port
from tests import forked
from tests.e2e.commands import environment
from tests.tiny import save_model
from tests.waiting import wait_until

VLLM = os.environ.get("DIABLO_TEST_VLLM", "")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not VLLM, reason="DIABLO_TEST_VLLM names no Python that has vLLM"),
]
# vLLM's attention has no heads as narrow as those of the other tests.
WIDTHS = {"hidden_size": 128, "num_key_value_heads": 2, "num_attention_heads": 4, "head_dim": 32}
LAYERS = [f"model.layers.{i}.mlp.{name}" for i in (0, 1) for name in ("up_proj", "down_proj")]
PROMPTS = ("1+1=", "2+5=", "nine and eight")
NUM_TOKENS = 16


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    return save_model(folder, **WIDTHS, initializer_range=0.3)


@pytest.fixture(scope="module")
def merged(base: Path) -> Path:
    """The base with a random adapter merged into it."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"up_proj": (4, 32, 16), "down_proj": (4, 16, 32)}
    deltas = {
        f"{layer}.delta": torch.randn(shapes[layer.split(".")[-1]], generator=generator) * 0.3
        for layer in LAYERS
    }
    config = AdapterConfig(str(base), fingerprint(base), dict.fromkeys(LAYERS, 4))
    save_adapter(base.parent / "adapter", deltas, config)
    folder = base.parent / "merged"
    forked.diablo_ds("merge", "--adapter", base.parent / "adapter", "--output", folder)
    return folder


@pytest.fixture(scope="module")
def address(merged: Path) -> Iterator[str]:
    """The server's address, once it answers."""
    port, log = free_port(), merged.parent / "server.log"
    options = (
        f"--model {merged} --served-model-name merged --dtype float32 --max-model-len 64 "
        f"--enforce-eager --host 127.0.0.1 --port {port}"
    )
    variables = environment() | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    variables["PATH"] = f"{Path(VLLM).parent}{os.pathsep}{variables['PATH']}"
    command = [VLLM, "-m", "vllm.entrypoints.openai.api_server", *options.split()]
    with log.open("w") as file:
        server = subprocess.Popen(
            command, env=variables, cwd=merged, stdout=file, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert server.poll() is None, log.read_text()
        try:
            return bool(urllib.request.urlopen(f"{url}/health", timeout=60).status == 200)
        except urllib.error.URLError:
            return False

    try:
        wait_until(answers, "the server", poll_s=1)
        yield url
    finally:
        server.terminate()
        server.wait()


def _served(address: str, ids: list[int]) -> list[int]:
    request: dict[str, Any] = {
        "model": "merged",
        "prompt": ids,
        "max_tokens": NUM_TOKENS,
        "ignore_eos": True,
        "temperature": 0,
        "return_token_ids": True,
    }
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(request).encode(), headers
    )
    with urllib.request.urlopen(asked) as answer:
        tokens: list[int] = json.load(answer)["choices"][0]["token_ids"]
    return tokens


@torch.no_grad()
def _generated(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Return greedy continuations that no end token ends."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    continuations = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(NUM_TOKENS):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        continuations.append(ids[len(prompt) :])
    return continuations


def test_vllm_gives_the_tokens_of_transformers(address, merged, base):
    tokenizer = AutoTokenizer.from_pretrained(merged)
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    served = [_served(address, prompt) for prompt in prompts]
    assert served == _generated(merged, prompts)
    assert all(a != b for a, b in zip(served, _generated(base, prompts), strict=True))
