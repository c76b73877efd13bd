"""Every command of the documents does what it is shown for, as it stands.

Commands are found by `tests/documents.py`; one that is added to a document is run from then on.
What needs a cluster is run dry, and what a launcher would start is run dry in turn, for its number
of ranks. A model of the hub stands for a tiny one. Links and names are checked in tests/unit.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from transformers import AutoModelForCausalLM

from diablo_ds.adapter.blocks import diagonal_blocks
from diablo_ds.adapter.storage import load_adapter
from diablo_ds.cli.cluster import local_slots
from diablo_ds.cli.main import main
from tests import forked
from tests.documents import DOCUMENTS, ROOT, check_extra, commands, python_blocks
from tests.e2e.commands import diablo_ds
from tests.tiny import save_model, write_pairs

pytestmark = pytest.mark.e2e

SAMPLES = ROOT / "diablo_ds" / "data" / "corpora" / "samples"
WORLD_SIZES = (1, 3, 8)
"""Of dry runs: one rank, a number that divides no usual batch, and a node of GPUs."""
HUB_MODELS = ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B")
"""Models that the documents name and that are not here; a tiny one takes their place."""
PLACEHOLDERS = {"PATH": "runs/real", "TESTS": "test.jsonl", "COMMAND": "train"}
"""Words that stand for another of the reader's."""
FIRST_RANK = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
"""What a launcher sets for the first of its ranks, besides their number."""
RUN_FOLDERS = ("runs/mine",)
"""Run folders that the documents speak of: new in a start, the real run where one is looked at."""
LOOKS = {"status", "runs", "report", "explain", "inspect", "merge", "push", "generate", "evaluate"}
"""Commands that look at a run."""
DRY = {"--check": "--dry-run", "--submit": "--dry-run"}
"""Options that need a cluster."""
CASES = [
    pytest.param(command, id=f"{path.relative_to(ROOT)}: {shlex.join(command.words)[:70]}")
    for path in DOCUMENTS
    for command in commands(path.read_text())
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A reader's working folder: the repository's folders, data, hosts, and a finished run."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("launch", "ds_configs", "data_prep", "diablo_ds"):
        (folder / name).symlink_to(ROOT / name)
    wide = {"hidden_size": 256, "intermediate_size": 256, "num_key_value_heads": 4, "head_dim": 64}
    model = save_model(folder / "tiny", **wide)
    for name in HUB_MODELS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(model)
    write_pairs(folder / "pairs.jsonl")
    write_pairs(folder / "chats.jsonl")
    (folder / "a").mkdir()
    (folder / "a" / "rows.csv").write_text("prompt,completion\n" + "1+1=,2\n3+4=,7\n" * 1500)
    rows = (SAMPLES / "gsm8k" / "train.jsonl").read_text().splitlines()
    (folder / "train.jsonl").write_text("\n".join(rows[:20]))
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    (folder / "sharegpt.json").write_text(json.dumps([{"conversations": talk}]))
    (folder / "test.jsonl").write_text("\n".join(rows[20:24]))
    (folder / "hosts").write_text("node-a slots=8\nnode-b slots=8\n")
    for name in ("gsm8k", "boolq"):
        (folder / name).mkdir()
    (folder / "gsm8k" / "test.jsonl").write_text("\n".join(rows[20:22]))
    asked = {"instruction": "Is 2 even?\n\nAnswer format: true/false", "input": ""}
    asked |= {"output": "the correct answer is true", "answer": "true"}
    (folder / "boolq" / "test.json").write_text(json.dumps([asked]))
    return folder


@pytest.fixture(scope="module")
def real_run(folder):
    """The README's command for two ranks on a CPU; tiny, and short."""
    shown = [words for words, _ in commands((ROOT / "README.md").read_text())]
    (words,) = [words for words in shown if "--ranks-per-node" in words]
    return diablo_ds(*words[1:], *_short(folder), "--output", folder / "runs" / "real")


def _short(folder):
    return f"--model {folder}/tiny --data {folder}/pairs.jsonl --num-blocks 4 --max-steps 2".split()


def test_the_readmes_command_for_two_ranks_on_a_cpu_trains(real_run):
    assert " x world size 2" in real_run.stdout + real_run.stderr
    assert "Done: 2 steps" in real_run.stdout


def test_the_main_configuration_trains_on_three_ranks(folder, tmp_path):
    """No usual batch divides over them. tests/e2e/test_train.py has the main command's launcher."""
    options = ("--ds_config", "ds_configs/zero3.json", *_short(folder))
    done = forked.ranks(*options, "--output", tmp_path / "run", num_ranks=3)
    equation = "global batch 9 = micro batch 3 x accumulation 1 x world size 3"
    output = done.stdout + done.stderr
    assert (
        f"chosen     {equation}: the smallest multiple of the world size that is at least 8"
    ) in output
    assert "chosen     precision " in output
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["micro_batch"], run["global_batch"]) == (3, 9)
    assert run["precision"] in ("bf16", "fp32")
    assert "Done: 2 steps" in done.stdout


@pytest.fixture
def reader(folder, monkeypatch):
    """The working folder, with the commands that the documents show before others."""
    monkeypatch.chdir(folder)
    if not (folder / "prepared").exists():
        sources = ("--source", "train.jsonl", "--exclude", "test.jsonl")
        _diablo_ds(["prepare", "math", *sources, "--output", "prepared/math"])
    return folder


@pytest.mark.parametrize("command", CASES)
def test_the_command_works_as_it_stands(command, reader, request, monkeypatch):
    words = [DRY.get(word, PLACEHOLDERS.get(word, word)) for word in command.words]
    if LOOKS & set(words[:3]) or "--init-adapter" in words:
        request.getfixturevalue("real_run")
        words = ["runs/real" if word in RUN_FOLDERS else word for word in words]
    if "evaluate" in words and not command.is_mention:
        words += ["--max-new-tokens", "8"]  # the tiny model has few positions
    if words[:3] == ["python", "-m", "diablo_ds"]:
        words[:3] = ["diablo-ds"]
    program, *arguments = words
    if program == "make":
        _check(subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True))
    elif program == "pip":
        check_extra(arguments)
    elif program == "python":
        _python(arguments)
    elif command.is_mention and "PATH" not in command.words:
        _check_mention(words)
    elif program == "deepspeed":
        _deepspeed(arguments, monkeypatch)
    else:
        _diablo_ds_as_shown(arguments, monkeypatch)


def _check_mention(words):
    """The command that a sentence mentions has the options that it names."""
    if words[0] == "deepspeed":
        return
    command = main
    names = [word for word in words[1:] if not word.startswith("-")]
    while names and names[0] in getattr(command, "commands", ()):
        command = command.commands[names.pop(0)]
    assert command is not main or len(words) == 2
    known = {option for parameter in command.params for option in parameter.opts}
    named = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert named <= known | {"--help", "--version"}


def _diablo_ds_as_shown(arguments, monkeypatch):
    command, *options = arguments
    if command not in main.commands or not options:  # only its name, or an option like --version
        _diablo_ds([command, *([] if command.startswith("-") else ["--help"])])
    elif command == "train":
        _train(options, monkeypatch)
    elif command == "launch":
        line = _diablo_ds([command, *_dry(options)]).stdout.splitlines()[-1]
        given = _value(options, "--gpus-per-node") or _value(options, "--ranks-per-node")
        slots = 16 if "--hostfile" in options else int(given or 0)
        words = shlex.split(line)  # variables, then the command
        words = words[words.index("deepspeed") + 1 :]
        _deepspeed(words, monkeypatch, [slots or local_slots()])
    elif command == "slurm" and options[0] not in main.commands["slurm"].commands:
        script = _diablo_ds([command, *_dry(options)]).stdout
        (line,) = [line for line in script.splitlines() if "deepspeed" in line]
        words = shlex.split(shlex.split(line.removesuffix("&"))[-1])
        words = words[words.index("deepspeed") + 1 :]
        ranks = int(_value(options, "--nodes")) * int(_value(options, "--gpus-per-node"))
        shown = {"$run_folder": "runs/slurm", "$log_folder": "runs/logs"}
        shown |= {"--node_rank=$SLURM_NODEID": "--node_rank=0"}
        _deepspeed([shown.get(word, word.replace("$", "")) for word in words], monkeypatch, [ranks])
    else:
        _diablo_ds(arguments)


def _deepspeed(arguments, monkeypatch, world_sizes=WORLD_SIZES):
    """DeepSpeed's launcher takes the options, and the ranks that it would start take theirs."""
    from deepspeed.launcher.runner import parse_args

    arguments = [
        "0" if before == "--node_rank" or before == "--master_port" else word
        for before, word in zip(["", *arguments], arguments, strict=False)
    ]
    parsed = parse_args(arguments)
    assert Path(parsed.user_script).resolve() == ROOT / "launch" / "train.py"
    _train(parsed.user_args, monkeypatch, world_sizes)


def _train(options, monkeypatch, world_sizes=(1,)):
    if "--help" in options:
        _diablo_ds(["train", *options])
        return
    options = [w for word in options for w in word.split("=", word.startswith("--"))]
    if "--log-folder" in options:  # for the guard
        at = options.index("--log-folder")
        options = options[:at] + options[at + 2 :]
    while "--env" in options:
        at = options.index("--env")
        options = options[:at] + options[at + 2 :]
    options = [word if word not in RUN_FOLDERS else "runs/new" for word in options]
    given = int(_value(options, "--global-batch") or 0)
    for world_size in world_sizes:
        if given % world_size:  # what is given is kept, or refused
            continue
        with monkeypatch.context() as launched:
            for name, value in {**FIRST_RANK, "WORLD_SIZE": str(world_size)}.items():
                launched.setenv(name, value)
            text = _diablo_ds(["train", "--dry-run", *options]).stdout
        assert f" x world size {world_size}" in text


def _python(arguments):
    option, *others = arguments
    if option == "-m" and others[0].startswith("benchmarks."):
        module = importlib.import_module(others[0])
        if hasattr(module, "__path__"):
            module = importlib.import_module(f"{others[0]}.__main__")
        _succeed(CliRunner().invoke(module.main, [*others[1:], "--help"]))
        return
    if option == "-m":
        assert importlib.util.find_spec(others[0]), f"no module {others[0]}"
    else:
        assert (ROOT / option).is_file(), f"no way to run python {shlex.join(arguments)}"


def _dry(options):
    return options if "--dry-run" in options else [*options, "--dry-run"]


def _value(options, name):
    return options[options.index(name) + 1] if name in options else None


def _diablo_ds(arguments):
    return _succeed(CliRunner().invoke(main, [str(word) for word in arguments]))


def _succeed(result):
    assert result.exit_code == 0, result.output
    return result


def _check(done):
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_programs_run(path, reader, real_run):
    for program in python_blocks(path.read_text()):
        exec(program.replace("runs/mine", "runs/real"), {})


def test_a_merged_model_is_the_one_that_was_trained(reader, real_run):
    (program,) = python_blocks((ROOT / "README.md").read_text())
    names = {}
    exec(program.replace("runs/mine", "runs/real"), names)
    base = AutoModelForCausalLM.from_pretrained("meta-llama/Llama-3.1-8B")
    tensors, config = load_adapter(Path("runs/real/adapter"))
    for layer, count in config.num_blocks.items():
        weight = base.get_submodule(layer).weight
        blocks = diagonal_blocks(weight, count) + tensors[f"{layer}.delta"]
        merged = names["model"].get_submodule(layer)
        assert type(merged) is nn.Linear
        assert torch.equal(diagonal_blocks(merged.weight, count), blocks)


def test_the_documents_hold_the_commands_that_a_newcomer_needs():
    found = [command for path in DOCUMENTS for command in commands(path.read_text())]
    shown = [shlex.join(words) for words, is_mention in found if not is_mention]
    assert "deepspeed launch/train.py --ds_config ds_configs/zero3.json" in shown
    for start in ("make train", "diablo-ds launch", "diablo-ds slurm", "diablo-ds prepare"):
        assert any(command.startswith(start) for command in shown)
    assert not [command for command in shown if "..." in command.split()]


def test_make_train_runs_exactly_the_command_that_the_readme_shows():
    done = subprocess.run(["make", "-n", "train"], cwd=ROOT, capture_output=True, text=True)
    assert re.search(r"deepspeed launch/train.py --ds_config ds_configs/zero3.json \|", done.stdout)
