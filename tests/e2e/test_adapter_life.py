"""What a user does with an adapter, from training to generated text, each step in its own process.

Four models must say the same, token by token in fp32: the trainer's on two ranks under ZeRO-3, the
merged folder in plain transformers, and the adapter in PEFT, beside the base and merged into it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from diablo_ds.adapter.attach import load_deltas
from diablo_ds.adapter.storage import load_adapter
from diablo_ds.config.run_files import load_run_config
from diablo_ds.model.base import read_base
from diablo_ds.ranks import distributed
from diablo_ds.training.building import attach_deltas, design_model, load_model
from diablo_ds.zero.ds_config import load_ds_config
from diablo_ds.zero.joining import init_process_group
from diablo_ds.zero.start import start_engine
from tests import forked
from tests.distributed.runner import run_distributed
from tests.e2e.commands import ZERO3, environment, losses
from tests.tiny import save_model, write_pairs
from tests.waiting import WAIT_S

pytestmark = [pytest.mark.e2e, pytest.mark.distributed]

PROMPTS = [f"{a}+{b}=" for a, b in ((1, 1), (2, 5), (4, 3), (6, 6), (7, 9), (9, 8))]
NUM_STEPS = 36
NUM_TOKENS = 12
"""Most tokens of a continuation."""

GENERATE = f"""
def generate(model, tokenizer, **options):
    continuations = []
    for prompt in {PROMPTS!r}:
        encoded = tokenizer(prompt, return_tensors="pt")
        tokens = model.generate(**encoded, **options, do_sample=False, max_new_tokens={NUM_TOKENS})
        continuations.append(tokens[0, encoded["input_ids"].shape[1]:].tolist())
    return continuations
"""

WITH_TRANSFORMERS = f"""
import json, sys
sys.modules["diablo_ds"] = sys.modules["peft"] = None  # as if they were not installed
for name in ("diablo_ds", "diablo_ds.adapter.layer", "peft"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{{name}} can be imported")

from transformers import AutoModelForCausalLM, AutoTokenizer
{GENERATE}
folder, heldout = sys.argv[1:]
model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
assert not any(report.values()), report
loss, count = 0.0, 0
for line in open(heldout):
    row = json.loads(line)
    prompt = tokenizer(row["prompt"], return_tensors="pt")["input_ids"]
    ids = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token, return_tensors="pt")
    labels = ids["input_ids"].clone()
    labels[:, :prompt.shape[1]] = -100
    num_targets = labels.shape[1] - prompt.shape[1]
    loss += float(model(**ids, labels=labels).loss) * num_targets
    count += num_targets
result = {{"tokens": generate(model, tokenizer), "heldout_loss": loss / count}}
assert not [name for name, module in sys.modules.items() if name[:9] == "diablo_ds" and module]
print(json.dumps(result))
"""

WITH_PEFT = f"""
import json, sys
import diablo_ds.peft
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
{GENERATE}
base, adapter = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(base)
ends = GenerationConfig.from_pretrained(adapter).eos_token_id
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
result = {{"tokens": generate(model, tokenizer, eos_token_id=ends)}}
with model.disable_adapter():
    result["without"] = generate(model, tokenizer)
result["merged"] = generate(model.merge_and_unload(), tokenizer, eos_token_id=ends)
assert "deepspeed" not in sys.modules
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A model with weights so large that its text depends on the prompt."""
    return save_model(tmp_path_factory.mktemp("base") / "tiny-llama", initializer_range=0.3)


@pytest.fixture(scope="module")
def heldout(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("heldout") / "heldout.jsonl", 6, seed=1)


@pytest.fixture(scope="module")
def run(base, heldout, tmp_path_factory) -> Path:
    """A finished run on two ranks under ZeRO-3."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    data = write_pairs(folder.parent / "pairs.jsonl", 40)
    options = (
        f"--ds_config {ZERO3} --model {base} --data {data} --heldout-data {heldout} "
        f"--output {folder} --num-blocks 4 --micro-batch 4 --global-batch 8 --precision fp32 "
        f"--max-steps {NUM_STEPS} --learning-rate 0.05"
    )
    forked.ranks(*options.split())
    return folder


@pytest.fixture(scope="module")
def merged(run) -> Path:
    """The folder that the command merges the run's adapter into."""
    folder = run.parent / "merged"
    forked.diablo_ds("merge", "--adapter", run, "--output", folder)
    return folder


@pytest.fixture(scope="module")
def by_transformers(merged, heldout) -> dict[str, Any]:
    return _in_a_fresh_process(WITH_TRANSFORMERS, merged, heldout)


def _in_a_fresh_process(program: str, *arguments: Path) -> Any:
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *map(str, arguments)],
        env=environment(),
        cwd=arguments[0],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _of_the_base(base: Path) -> list[list[int]]:
    names: dict[str, Any] = {}
    exec(GENERATE, names)
    model = AutoModelForCausalLM.from_pretrained(base)
    tokens: list[list[int]] = names["generate"](model, AutoTokenizer.from_pretrained(base))
    return tokens


def _generate_as_the_trainer(rank: int, run: Path, base: Path, output: Path) -> None:
    """Continue the prompts on this rank by the model that is trained, partitioned by ZeRO-3."""
    run_config, device = load_run_config(run / "run.json"), init_process_group()
    design = design_model(
        run_config, read_base(base).shapes, load_ds_config(ZERO3), ZERO3, device.type
    )
    built = attach_deltas(design, load_model(design, read_base(base)), device)
    tensors, _ = load_adapter(run / "adapter")
    load_deltas(built.model, tensors)
    engine = start_engine(built.model, built.deltas, run_config, design.ds_config)
    tokenizer = AutoTokenizer.from_pretrained(base)
    ends = GenerationConfig.from_pretrained(run / "adapter").eos_token_id
    continuations = []
    with torch.no_grad(), engine.evaluating():
        for prompt in PROMPTS:
            ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
            tokens: list[int] = []
            while len(tokens) < NUM_TOKENS and not set(tokens) & set(ends):
                logits = engine.module(input_ids=ids).logits[0, -1]
                tokens.append(int(logits.argmax()))
                ids = torch.cat([ids, torch.tensor([tokens[-1:]])], dim=1)
            continuations.append(tokens)
    if distributed.is_main_process():
        output.write_text(json.dumps(continuations))


def test_the_merged_folder_says_in_plain_transformers_what_was_trained(by_transformers, base, run):
    without = _of_the_base(base)
    said = by_transformers["tokens"]
    assert all(a != b for a, b in zip(said, without, strict=True))
    assert len({tuple(tokens) for tokens in said}) > 1
    trained = losses(run, "heldout_loss")
    assert by_transformers["heldout_loss"] == pytest.approx(trained[NUM_STEPS], rel=1e-5)
    assert trained[NUM_STEPS] < trained[0] - 1


def test_the_trainers_own_model_says_the_same_under_zero3(by_transformers, base, run, tmp_path):
    output = tmp_path / "tokens.json"
    run_distributed(_generate_as_the_trainer, 2, tmp_path, run, base, output)
    assert json.loads(output.read_text()) == by_transformers["tokens"]


def test_the_adapter_says_the_same_in_peft(by_transformers, base, run):
    by_peft = _in_a_fresh_process(WITH_PEFT, base, run / "adapter")
    assert by_peft["tokens"] == by_peft["merged"] == by_transformers["tokens"]
    assert by_peft["without"] == _of_the_base(base)
