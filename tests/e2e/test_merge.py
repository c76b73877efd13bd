"""`diablo-ds merge` as a command: interrupted, on a full disk, and with memory for one piece."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diablo_ds.adapter.storage import AdapterConfig, save_adapter
from diablo_ds.conversion.merging import shards
from diablo_ds.conversion.merging.merge import merge_adapter
from diablo_ds.conversion.merging.options import MergeOptions
from diablo_ds.files.layout import MERGE_REPORT_FILE
from diablo_ds.files.work_folders import find_work_folder, open_work_folder
from diablo_ds.model.finding import fingerprint
from tests import forked
from tests.e2e.commands import assert_user_error
from tests.unit.conversion.merge_cases import load, logits, make_case

pytestmark = pytest.mark.e2e


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _killed(case, output: Path, after_writes: int) -> None:
    """Merge in a process that kills itself in the middle of a file."""
    write, left = shards._write, after_writes

    def write_or_die(out, data):
        nonlocal left
        left -= 1
        if not left:
            out.write(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write(out, data)

    shards._write = write_or_die
    merge_adapter(MergeOptions(adapter=case.adapter, output=output))


@pytest.fixture
def case(tmp_path):
    return make_case(tmp_path, dtype=torch.bfloat16, max_shard_size="15KB", num_hidden_layers=4)


def _kill(case, output: Path, after_writes: int) -> tuple[Path, set[str]]:
    """Return the work folder of a merge that was killed, and the names of its complete files."""
    process = multiprocessing.get_context("fork").Process(
        target=_killed, args=(case, output, after_writes)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not output.exists()
    folder, notes = find_work_folder(output)
    return folder, {note["name"] for note in notes}


def test_a_killed_merge_continues_after_the_last_complete_file(case, tmp_path):
    case.merge(tmp_path / "whole")
    partial, complete = _kill(case, tmp_path / "merged", 20)
    assert 0 < len(complete) < len(list(case.base.glob("*.safetensors")))
    written = {name: (partial / name).stat() for name in complete}
    result = forked.diablo_ds("merge", "--adapter", case.adapter, "--output", tmp_path / "merged")
    assert f"Continuing an interrupted merge: {len(complete)} of " in result.stderr
    for name, before in written.items():  # the same file, not written again
        now = (tmp_path / "merged" / name).stat()
        assert (now.st_ino, now.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert _files(tmp_path / "merged") == _files(tmp_path / "whole")
    assert not partial.exists()
    assert not [p for p in (tmp_path / "merged").iterdir() if p.name.startswith(".")]
    torch.testing.assert_close(
        logits(load(tmp_path / "merged")), logits(load(tmp_path / "whole")), atol=0, rtol=0
    )


@pytest.mark.parametrize("changed", ["adapter", "base", "dtype", "file"])
def test_nothing_is_kept_of_a_merge_from_other_inputs(case, tmp_path, changed):
    partial, complete = _kill(case, tmp_path / "merged", 20)
    options = {}
    if changed == "adapter":
        config = AdapterConfig(str(case.base), fingerprint(case.base), case.num_blocks)
        case = case._replace(deltas={n: -d for n, d in case.deltas.items()})
        save_adapter(case.adapter, case.deltas, config)
    elif changed == "base":  # a byte of the last tensor that no fingerprint samples
        file = sorted(case.base.glob("*.safetensors"))[-1]
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    elif changed == "dtype":
        options["dtype"] = "fp32"
    else:
        name = min(complete)
        (partial / name).write_bytes(b"x" * (partial / name).stat().st_size)
    case.merge(tmp_path / "merged", **options)
    case.merge(tmp_path / "whole", **options)
    assert _files(tmp_path / "merged") == _files(tmp_path / "whole")


def test_two_merges_to_one_output_do_not_meet(case, tmp_path):
    output = tmp_path / "merged"
    with open_work_folder(output, {}, "output that is being merged") as work:
        result = forked.diablo_ds(
            "merge", "--adapter", case.adapter, "--output", output, check=False
        )
        assert_user_error(result, "output that is being merged")
        assert work.path.is_dir()


def test_a_disk_that_fills_up_keeps_what_is_complete(case, tmp_path, small_disk, monkeypatch):
    output = small_disk / "merged"
    room = sum(path.stat().st_size for path in case.base.glob("*.safetensors")) // 2
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
    result = forked.diablo_ds("merge", "--adapter", case.adapter, "--output", output, check=False)
    assert_user_error(result, "must have room for the merged model")
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]
    # As if somebody else had filled it after the check.
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as roomy:
        roomy.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(OSError, match=r"No space left.* files are complete; make room"):
            case.merge(output)
    assert not output.exists()
    ballast.unlink()
    result = forked.diablo_ds("merge", "--adapter", case.adapter, "--output", output)
    assert "Continuing" in result.stderr
    case.merge(tmp_path / "whole")
    assert _files(output) == _files(tmp_path / "whole")


def test_the_command_says_what_it_did_and_a_mistake_without_traceback(case, tmp_path):
    words = ["merge", "--adapter", case.adapter, "--output", tmp_path / "merged"]
    result = forked.diablo_ds(*words)
    assert "all layers" in result.stdout
    assert f"Done: {tmp_path / 'merged'}" in result.stdout
    assert (tmp_path / "merged" / MERGE_REPORT_FILE).is_file()
    assert_user_error(forked.diablo_ds(*words, check=False), "output must be a new folder")


def _growth(adapter: Path, output: Path, connection) -> None:
    import transformers  # noqa: F401 - not counted

    def peak() -> int:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now on
    before = peak()
    merge_adapter(MergeOptions(adapter=adapter, output=output))
    connection.send(peak() - before)


def test_memory_does_not_grow_with_the_size_of_a_tensor(tmp_path):
    width, base = 8192, tmp_path / "base"
    base.mkdir()
    layer = "model.layers.0.self_attn.q_proj"
    weight = torch.ones(width, width, dtype=torch.bfloat16)  # 134 MB
    save_file({f"{layer}.weight": weight}, base / "model.safetensors", metadata={"format": "pt"})
    (base / "config.json").write_text('{"model_type": "llama"}')
    delta = torch.full((64, width // 64, width // 64), 0.5)
    config = AdapterConfig(str(base), fingerprint(base), {layer: 64})
    save_adapter(tmp_path / "adapter", {f"{layer}.delta": delta}, config)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=_growth, args=(tmp_path / "adapter", tmp_path / "merged", sender)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    assert receiver.recv() < weight.nbytes / 2
