"""From raw files to a dataset and to training, as a user does it, and bad input."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import datasets
import pytest
from PIL import Image

from diablo_ds.data.default_files import SAMPLES_FOLDER
from diablo_ds.data.token_table import TokenTable
from tests.e2e.commands import BIN, ROOT, ZERO3, assert_user_error, environment, losses
from tests.forked import diablo_ds, ranks

pytestmark = pytest.mark.e2e

SAMPLE_FOLDERS = {
    "commonsense": "commonsense",
    "math": "gsm8k",
    "code": "code",
    "safety": "safety",
}


def _prepare(family, *args, check=True):
    return diablo_ds("prepare", family, *args, check=check)


def _script(*args):
    """Run a Python script or module as a user does."""
    command = [sys.executable, *map(str, args)]
    result = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result


def _times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("family", SAMPLE_FOLDERS)
def test_shipped_samples_of_each_family_are_prepared_and_trained_on(family, model, tmp_path):
    source, prepared = SAMPLES_FOLDER / SAMPLE_FOLDERS[family], tmp_path / "prepared"
    options = ["--source", source, "--tokenizer", model, "--max-length", 1024]
    options += ["--val-share", 0.1, "--limit", 40]
    result = _prepare(family, *options, "--output", prepared)
    assert "\nLicence" in result.stdout
    assert f"Next: diablo-ds prepare --inspect {prepared}" in result.stdout
    # The same program under its other names finds that the work is done.
    for again in (
        _script(f"data_prep/{family}.py", *options, "--output", prepared),
        _script("-m", f"data_prep.{family}", *options, "--output", prepared),
    ):
        assert "Already prepared" in again.stderr
        assert again.stdout == result.stdout

    run = ["--ds_config", ZERO3, "--model", model, "--data", prepared, "--num-blocks", 4]
    run += ["--max-length", 1024, "--packing", "--micro-batch", 1, "--global-batch", 4]
    run += ["--max-steps", 10, "--learning-rate", 0.05, "--output", tmp_path / "run"]
    ranks(*run, num_ranks=2)
    heldout = losses(tmp_path / "run", "heldout_loss")
    assert heldout[10] < heldout[0] - 0.1


def test_a_prepared_dataset_trains_like_its_source(options, model, tmp_path):
    data = tmp_path / "d.jsonl"
    rows = [{"prompt": f"{i}=", "completion": "ab" * (i % 9 + 1)} for i in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _prepare("auto", "--source", data, "--tokenizer", model, "--output", tmp_path / "prepared")
    for name, source in (("text", data), ("tokens", tmp_path / "prepared")):
        diablo_ds("train", *options, "--data", source, "--output", tmp_path / name)
    assert losses(tmp_path / "text") == losses(tmp_path / "tokens")


def test_inspecting_shows_masks_in_colour_lengths_and_a_plot(model, tmp_path):
    prepared = tmp_path / "prepared"
    source = tmp_path / "d.jsonl"
    rows = [{"prompt": f"ask {i}?", "completion": "yes " * i} for i in range(1, 30)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--source", source, "--tokenizer", model, "--output", prepared]
    _prepare("auto", *options, "--val-share", 0.25)
    # Colours go to a terminal only; `script` is one.
    command = f"{BIN}/diablo-ds prepare --inspect {prepared} --num 2"
    if not shutil.which("script"):
        pytest.skip("needs the program script for a terminal")
    result = subprocess.run(
        ["script", "-qc", command, "/dev/null"],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    text = result.stdout.replace("\r\n", "\n")
    first = TokenTable.load(prepared, "train")[0]
    shown = re.search(r"ask (\d+)\?\x1b\[32m\x1b\[1m(.*?)\x1b\[0m(.*?)\x1b\[0m", text)
    assert shown
    assert shown[2] == "yes " * int(shown[1])
    assert shown[3] == "\x1b[32m\x1b[1m\x1b[4m<|end|>"
    assert f"example 0 of 22, {len(first.input_ids)} tokens" in text
    assert "train: examples by length in tokens" in text
    assert "22 examples" in text
    with Image.open(prepared / "lengths.png") as plot:
        assert plot.size == (960, 540)
    # The plot beside it does not make the dataset another one.
    assert "Already prepared" in _prepare("auto", *options, "--val-share", 0.25).stderr
    assert datasets.load_from_disk(str(prepared))["train"].num_rows == 22


def test_a_second_run_loads_no_tokenizer_and_writes_nothing(model, data, tmp_path):
    """Which takes no time: modules that a first run needs can be missing."""
    options = ["--source", data, "--tokenizer", model, "--output", tmp_path / "prepared"]
    _prepare("auto", *options)
    before = _times(tmp_path / "prepared")
    needless = ("transformers", "tokenizers", "datasets")
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({needless}));"
        "from diablo_ds.cli.main import entry_point; entry_point()"
    )
    result = _script("-c", program, "prepare", "auto", *options)
    assert "Already prepared from the same inputs" in result.stderr
    assert _times(tmp_path / "prepared") == before


def test_a_folder_with_modules_named_like_pythons_own_hides_none(model, data, tmp_path):
    """The folder of math.py and code.py, where the processes are started too."""
    options = ["--source", data, "--tokenizer", model, "--output", tmp_path / "out"]
    command = [sys.executable, "auto.py", *map(str, options), "--num-proc", "2"]
    result = subprocess.run(
        command,
        cwd=ROOT / "data_prep",
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("name", "data", "parts"),
    [
        ("missing.jsonl", None, ["must be an existing file, folder", "missing.jsonl"]),
        ("empty.json", b"", ["at least one row; got none in", "empty.json"]),
        ("wrong.json", b'[\n{"prompt": "a",\n"completion" "b"}]', ["wrong.json, line 3: "]),
        ("wrong.jsonl", b'{"prompt": "a"\n', ["wrong.jsonl, line 1: a row must be valid JSON"]),
        ("latin.json", '[{"text": "\u00e9"}]'.encode("latin-1"), ["must be UTF-8", "latin.json"]),
        (
            "utf16.jsonl",
            '{"text": "x"}'.encode("utf-16"),
            ["must be UTF-8", "utf16.jsonl, which is UTF-16"],
        ),
        ("field.jsonl", b'{"prompt": "a"}', ["field.jsonl, line 1: a row must have"]),
        ("type.jsonl", b'{"text": [1]}', ["line 1: field 'text' must be text: [1]"]),
        ("long.jsonl", b'{"text": "' + b"x" * 10_000_000 + b'"}', ["at most 1,000,000 characters"]),
        ("long.json", b'[{"text": "' + b"x" * 10_000_000 + b'"}]', ["at most 1,000,000 char"]),
    ],
)
def test_bad_files_are_named(name, data, parts, model, tmp_path):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    options = ["--source", tmp_path / name, "--tokenizer", model, "--output", tmp_path / "out"]
    result = _prepare("auto", *options, check=False)
    assert_user_error(result, *parts)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_and_a_tokenizer_without_end_are_named(model, data, tmp_path):
    result = _prepare(
        "auto", "--source", data, "--tokenizer", model, "--output", tmp_path, check=False
    )
    assert_user_error(result, "output must be a new folder", str(tmp_path))
    copy = shutil.copytree(model, tmp_path / "model")
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config.pop("eos_token")
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    options = ["--source", data, "--tokenizer", copy, "--output", tmp_path / "out"]
    assert_user_error(_prepare("auto", *options, check=False), "must have an end token")
    assert_user_error(
        diablo_ds("prepare", "--inspect", tmp_path, check=False), "made by diablo-ds prepare"
    )
