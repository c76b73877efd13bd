"""From raw files to a dataset and to training, as a user does it; and what may go wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from PIL import Image

from diablo_ds.data.loading import SAMPLES_FOLDER
from diablo_ds.data.token_table import TokenTable
from tests.e2e.commands import (
    BIN,
    ROOT,
    ZERO3,
    assert_user_error,
    environment,
    losses,
)
from tests.forked import diablo_ds, ranks
from tests.tiny import write_pairs
from tests.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.e2e

SAMPLE_FOLDERS = {
    **{"commonsense": "commonsense", "math": "gsm8k", "code": "code", "safety": "safety"},
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


def _files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name != ".file_times.json"
    }


def _times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


# --- the way of a user ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", SAMPLE_FOLDERS)
def test_shipped_samples_of_each_family_are_prepared_and_trained_on(family, model, tmp_path):
    source, prepared = SAMPLES_FOLDER / SAMPLE_FOLDERS[family], tmp_path / "prepared"
    options = ["--source", source, "--tokenizer", model, "--max-length", 1024]
    options += ["--val-share", 0.1, "--limit", 40]
    result = _prepare(family, *options, "--output", prepared)
    assert "Licence: " in result.stdout
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
    run += ["--max-steps", 20, "--learning-rate", 0.02, "--output", tmp_path / "run"]
    ranks(*run, num_ranks=2)
    heldout = losses(tmp_path / "run", "heldout_loss")
    assert heldout[20] < heldout[0] - 0.1


def test_a_prepared_dataset_trains_like_its_source(options, model, tmp_path):
    data = tmp_path / "d.jsonl"
    rows = [{"prompt": f"{i}=", "completion": "ab" * (i % 9 + 1)} for i in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _prepare("jsonl", "--source", data, "--tokenizer", model, "--output", tmp_path / "prepared")
    for name, source in (("text", data), ("tokens", tmp_path / "prepared")):
        diablo_ds("train", *options, "--data", source, "--output", tmp_path / name)
    assert losses(tmp_path / "text") == losses(tmp_path / "tokens")


@pytest.mark.parametrize(
    "mode",
    [
        "--packing --max-length 64",
        "--micro-batch 0 --micro-batch-tokens 128 --max-length 64 --group-by-length",
        "--stream --heldout-share 0",
    ],
)
def test_every_way_of_batching_resumes_bit_identically_on_two_ranks(mode, options, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    options = [*options, *mode.split()]
    ranks(*options, "--output", whole, num_ranks=2)
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step-000008")
    result = ranks(*options, "--output", resumed, num_ranks=2)
    assert "Resuming after step 4" in result.stderr
    assert losses(resumed) == losses(whole)
    assert len(losses(whole)) == 8
    adapter = "adapter/adapter.safetensors"
    assert (resumed / adapter).read_bytes() == (whole / adapter).read_bytes()


@pytest.mark.parametrize("mode", ["--packing", "--stream --heldout-share 0 --max-length 200"])
def test_one_rank_and_two_take_the_same_steps(mode, options, tmp_path):
    options = [*options, *mode.split(), "--dropout", "0"]
    diablo_ds("train", *options, "--output", tmp_path / "one")
    ranks(*options, "--output", tmp_path / "two", num_ranks=2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_packing_does_not_change_the_held_out_loss(options, tmp_path):
    for name, mode in (("plain", []), ("packed", ["--packing"])):
        run = [*options, *mode, "--max-steps", 1, "--output", tmp_path / name]
        diablo_ds("train", *run)
    plain, packed = (losses(tmp_path / name, "heldout_loss")[0] for name in ("plain", "packed"))
    assert packed == pytest.approx(plain, rel=1e-5)


def test_inspecting_shows_masks_in_colour_lengths_and_a_plot(model, tmp_path):
    prepared = tmp_path / "prepared"
    source = tmp_path / "d.jsonl"
    rows = [{"prompt": f"ask {i}?", "completion": "yes " * i} for i in range(1, 30)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--source", source, "--tokenizer", model, "--output", prepared]
    _prepare("jsonl", *options, "--val-share", 0.25)
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
    assert "Already prepared" in _prepare("jsonl", *options, "--val-share", 0.25).stderr
    assert datasets.load_from_disk(str(prepared))["train"].num_rows == 22


def test_a_second_run_loads_no_tokenizer_and_writes_nothing(model, data, tmp_path):
    """Which takes no time: modules that a first run needs can be missing."""
    options = ["--source", data, "--tokenizer", model, "--output", tmp_path / "prepared"]
    _prepare("jsonl", *options)
    before = _times(tmp_path / "prepared")
    needless = ("transformers", "tokenizers", "datasets")
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({needless}));"
        "from diablo_ds.cli.main import entry_point; entry_point()"
    )
    result = _script("-c", program, "prepare", "jsonl", *options)
    assert "Already prepared from the same inputs" in result.stderr
    assert _times(tmp_path / "prepared") == before


def test_a_folder_with_modules_named_like_pythons_own_hides_none(model, data, tmp_path):
    """The folder of math.py and code.py, where the processes are started too."""
    options = ["--source", data, "--tokenizer", model, "--output", tmp_path / "out"]
    command = [sys.executable, "jsonl.py", *map(str, options), "--num-proc", "2"]
    result = subprocess.run(
        command,
        cwd=ROOT / "data_prep",
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


# --- what may go wrong ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_source(tmp_path_factory):
    """A source that takes some seconds: 30 chunks."""
    path = tmp_path_factory.mktemp("source") / "long.jsonl"
    row = json.dumps({"prompt": "p{}", "completion": "word " * 60})
    path.write_text("".join(row.replace("{}", str(i)) + "\n" for i in range(30_000)))
    return path


def _start(*args):
    command = [str(BIN / "diablo-ds"), "prepare", "jsonl", *map(str, args)]
    return subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores control-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def _children(pid):
    """The worker processes of a process: multiprocessing's resource tracker is none."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        command = Path(f"/proc/{child}/cmdline").read_bytes()
        if b"spawn_main" in command:
            found.append(int(child))
    return found


def _is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def long_options(long_source, model):
    return ["--source", long_source, "--tokenizer", model, "--max-length", 600]


@pytest.fixture(scope="module")
def undisturbed(long_options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    _prepare("jsonl", *long_options, "--output", folder, "--num-proc", 2)
    return _files(folder)


def _start_and_wait_for_chunks(options, output):
    partial = output.with_name(f".{output.name}.partial")
    process = _start(*options, "--output", output, "--num-proc", 2)
    try:
        wait_until(lambda: len(list(partial.glob("chunk-*.arrow"))) > 5, "chunks")
        workers = wait_until(lambda: _children(process.pid), "workers")
    except BaseException:
        process.kill()
        raise
    assert len(workers) == 2
    return process, workers


def _assert_goes_on_to(expected, options, output):
    result = _prepare("jsonl", *options, "--output", output, "--num-proc", 1)
    assert "Continuing with an interrupted run" in result.stderr
    assert _files(output) == expected
    assert [path.name for path in output.parent.iterdir()] == ["out"]


def test_a_killed_worker_is_named_and_its_work_goes_on_later(long_options, undisturbed, tmp_path):
    options, output = long_options, tmp_path / "out"
    process, workers = _start_and_wait_for_chunks(options, output)
    os.kill(workers[0], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=WAIT_S)
    result = subprocess.CompletedProcess([], process.returncode, stdout, stderr)
    assert_user_error(result, "a worker process ended before its work was done", "run the same")
    assert not output.exists()
    wait_until(lambda: not any(map(_is_alive, workers)), "the other worker's end")
    _assert_goes_on_to(undisturbed, options, output)


def test_a_killed_command_leaves_no_worker_and_nothing_half_written(
    long_options, undisturbed, tmp_path
):
    options, output = long_options, tmp_path / "out"
    process, workers = _start_and_wait_for_chunks(options, output)
    process.kill()
    process.communicate()
    wait_until(lambda: not any(map(_is_alive, workers)), "the workers' end")
    assert not output.exists()
    _assert_goes_on_to(undisturbed, options, output)


def test_control_c_ends_without_a_traceback(long_options, tmp_path):
    process, workers = _start_and_wait_for_chunks(long_options, tmp_path / "out")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=WAIT_S)
    assert process.returncode != 0
    assert "Traceback" not in stdout + stderr
    wait_until(lambda: not any(map(_is_alive, workers)), "the workers' end")


def test_a_full_disk_leaves_nothing_half_written(model, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        source = write_pairs(tmp_path / "d.jsonl", 4000)
        options = ["--source", source, "--tokenizer", model, "--output", disk / "out"]
        (disk / "ballast").write_bytes(bytes(800_000))
        for num_proc in (1, 2):
            result = _prepare("jsonl", *options, "--num-proc", num_proc, check=False)
            assert_user_error(result, "No space left on device")
            assert not (disk / "out").exists()
            assert not [p for p in disk.rglob("*") if p.name.endswith(".tmp")]
        (disk / "ballast").unlink()
        assert "Continuing" in _prepare("jsonl", *options).stderr
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


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
        ("field.jsonl", b'{"prompt": "a"}', ["field.jsonl, line 1: a row of jsonl must have"]),
        ("type.jsonl", b'{"text": [1]}', ["line 1: field 'text' must be text: [1]"]),
        ("long.jsonl", b'{"text": "' + b"x" * 10_000_000 + b'"}', ["at most 1,000,000 characters"]),
        ("long.json", b'[{"text": "' + b"x" * 10_000_000 + b'"}]', ["at most 1,000,000 char"]),
    ],
)
def test_bad_files_are_named(name, data, parts, model, tmp_path):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    options = ["--source", tmp_path / name, "--tokenizer", model, "--output", tmp_path / "out"]
    result = _prepare("jsonl", *options, check=False)
    assert_user_error(result, *parts)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_and_a_tokenizer_without_end_are_named(model, data, tmp_path):
    result = _prepare(
        "jsonl", "--source", data, "--tokenizer", model, "--output", tmp_path, check=False
    )
    assert_user_error(result, "output must be a new folder", str(tmp_path))
    copy = shutil.copytree(model, tmp_path / "model")
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config.pop("eos_token")
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    options = ["--source", data, "--tokenizer", copy, "--output", tmp_path / "out"]
    assert_user_error(_prepare("jsonl", *options, check=False), "must have an end token")
    assert_user_error(
        diablo_ds("prepare", "--inspect", tmp_path, check=False), "made by diablo-ds prepare"
    )
