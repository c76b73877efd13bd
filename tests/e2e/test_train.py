"""A run from the command line to its results, and what a user finds in the run folder."""

from __future__ import annotations

import json
import os
import re
import struct

import pytest
import torch
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from diablo_ds.adapter.storage import load_adapter
from diablo_ds.cli.main import main
from diablo_ds.files.layout import ADAPTER_CONFIG_FILE, list_checkpoints
from diablo_ds.ranks.noise import is_noise
from tests import documents, forked
from tests.e2e.commands import ROOT, ZERO3, assert_user_error, deepspeed, diablo_ds, losses

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def finished(model, data, tmp_path_factory):
    """A finished run on two ranks under ZeRO-3, in the precision that auto takes."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = (
        f"--ds_config {ZERO3} --model {model} --data {data} --output {folder} --num_blocks 4 "
        "--micro_batch 2 --global_batch 4 --num_epochs 2 --eval_every 6 --save_every 6 "
        "--learning_rate 0.02 --recompute"
    )
    return folder, deepspeed(*options.split(), num_ranks=2)


def test_the_summary_says_where_everything_is_and_what_is_next(finished):
    folder, result = finished
    heldout = losses(folder, "heldout_loss")
    assert list(heldout) == [0, 6, 12, 18, 19]  # before, during and after
    assert heldout[19] < heldout[0] - 0.1
    points = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for name, number in (("evaluation_s", 5), ("saving_s", 4)):  # the last ones included
        assert sum(name in point for point in points) == number
    first, last = f"{heldout[0]:.4f}", f"{heldout[19]:.4f}"
    assert f"Done: 19 steps. Held-out loss from {first} to {last}." in result.stdout
    for name in ("adapter", "checkpoints/step-000019", "tensorboard", "loss.png"):
        assert str(folder / name) in result.stdout
        assert (folder / name).exists()
    assert re.search(r"Steps took \d+:\d\d, .* tokens/s, peak memory \d", result.stdout)
    assert f"diablo-ds merge --adapter {folder}" in result.stdout
    assert f"Next:\n  diablo-ds generate --adapter {folder}" in result.stdout
    assert f"diablo-ds inspect {folder}/adapter" in result.stdout
    assert f"diablo-ds report {folder} --output {folder}-report.html" in result.stdout


def test_the_log_shows_batch_equation_placement_and_progress(finished):
    _, result = finished
    text = result.stderr
    assert "batch      global batch 4 = micro batch 2 x accumulation 1 x world size 2\n" in text
    assert "steps      19; evaluation and checkpoint every 6; " in text
    assert re.search(r"Estimated time left: \d+:\d\d, for 16 steps of ", text)
    assert "38 examples" in text
    for part in ("model      ", "2 decoder layers", "N=4", "attention sdpa", "ZeRO-3 on 2 x "):
        assert part in text
    assert re.search(r"Each rank holds .*: base matrices .* sharded, .* deltas .* replicated", text)
    assert "step 19/19  loss " in text
    assert "\r" not in text  # nothing is drawn where no terminal is
    assert "tokens/s" in text
    assert " left" in text
    assert text.count("step 19/19  loss ") == 1  # rank 0 alone speaks


def test_nothing_on_the_screen_that_a_newcomer_cannot_act_on(finished):
    _, result = finished
    # The launcher's own lines, before and after our ranks', carry its file name.
    ours = [line for line in (result.stdout + result.stderr).splitlines() if not is_noise(line)]
    assert "rank 0 of 2, from DeepSpeed" in ours, result.stdout + result.stderr
    ours.remove("rank 0 of 2, from DeepSpeed")
    assert not [line for line in ours if re.search(r"\b[Ww]arn|WARN|DeepSpeed|\[INFO\]", line)]


def test_event_files_hold_every_series(finished):
    folder, _ = finished
    events, heldout, results = (
        EventAccumulator(str(folder / "tensorboard" / run)).Reload()
        for run in ("", "heldout", "results")
    )
    tag = "1 loss/per target token"
    wanted = {"3 speed/tokens_per_s", "5 memory/peak_GB", "6 optimizer/learning_rate"}
    assert {tag, "6 optimizer/grad_norm", *wanted} <= set(events.Tags()["scalars"])
    assert "9 deltas/norms" in events.Tags()["histograms"]
    for found, name in ((events, "loss"), (heldout, "heldout_loss")):
        drawn = {event.step: event.value for event in found.Scalars(tag)}
        assert drawn == pytest.approx(losses(folder, name), rel=1e-6)
    best = results.Scalars("results/best_heldout_loss")[-1]
    assert (best.step, best.value) == (
        19,
        pytest.approx(min(losses(folder, "heldout_loss").values())),
    )
    plugins = results.summary_metadata
    assert plugins["_hparams_/session_start_info"].plugin_data.plugin_name == "hparams"


def test_run_config_plot_and_adapter_are_written(finished):
    folder, _ = finished
    run = json.loads((folder / "run.json").read_text())
    assert (run["global_batch"], run["output"]) == (4, str(folder))
    header = (folder / "loss.png").read_bytes()[:24]
    width, height = struct.unpack(">II", header[16:])
    assert header[1:4] == b"PNG"
    assert min(width, height) > 300
    tensors, config = load_adapter(folder / "adapter")
    assert len(tensors) == len(config.num_blocks) == 10
    values = json.loads((folder / "adapter" / ADAPTER_CONFIG_FILE).read_text())
    assert values["target_modules"] == ["down_proj", "k_proj", "q_proj", "up_proj", "v_proj"]
    assert (config.step, config.heldout_loss) == (19, losses(folder, "heldout_loss")[19])
    assert config.library_versions.keys() >= {"torch", "diablo-ds"}
    assert all(t.dtype == torch.float32 and t.abs().max() > 0 for t in tensors.values())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for it
def test_the_card_loads_the_adapter_in_three_ways(finished, tmp_path, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(tmp_path)
    text = (folder / "adapter" / "README.md").read_text()
    assert str(folder.parent) not in text
    base = load_adapter(folder / "adapter")[1].base_model
    (tmp_path / "ADAPTER").symlink_to(folder / "adapter")
    (tmp_path / "BASE_MODEL").symlink_to(base)
    (merge,) = (words for words, _ in documents.commands(text) if words[0] == "diablo-ds")
    result = CliRunner().invoke(main, [*merge[1:], "--dtype", "fp32"])
    assert result.exit_code == 0, result.output
    logits = []
    for program in documents.python_blocks(text):
        names = {}
        exec(program.replace('"auto"', "torch.float32"), {"torch": torch}, names)
        with torch.no_grad():
            logits.append(names["model"](torch.arange(9)[None]).logits)
    assert len(logits) == 3
    assert_close(logits[1], logits[0])
    assert_close(logits[2], logits[0])
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        assert (model(torch.arange(9)[None]).logits - logits[0]).abs().max() > 1e-3


def test_the_last_checkpoints_are_kept_and_are_no_larger_than_the_adapter_and_its_state(finished):
    folder, _ = finished
    kept = list_checkpoints(folder / "checkpoints")
    assert [path.name for path in kept] == ["step-000019", "step-000018"]
    tensors, _ = load_adapter(folder / "adapter")
    adapter_bytes = sum(t.numel() for t in tensors.values()) * 4
    checkpoint_bytes = sum(path.stat().st_size for path in kept[0].iterdir())
    assert checkpoint_bytes < 3 * adapter_bytes + 10_000
    assert {p.name for p in folder.iterdir()} == {
        "run.json",
        "metrics.jsonl",
        "tensorboard",
        "loss.png",
        "adapter",
        "checkpoints",
        "progress.json",
        ".owner",
    }


def test_inspect_describes_run_checkpoint_and_adapter(finished):
    folder, _ = finished
    run = forked.diablo_ds("inspect", folder).stdout
    assert "step-000019, intact" in run
    assert f"Run {folder}, done\n" in run
    checkpoint = forked.diablo_ds("inspect", folder / "checkpoints" / "step-000019").stdout
    assert "step         19, 76 examples seen" in checkpoint
    adapter = forked.diablo_ds("inspect", folder / "adapter").stdout
    assert "2 x q_proj: num_blocks=4, in_block=8, out_block=8, F32" in adapter


def test_a_finished_run_is_not_trained_again(finished):
    folder, _ = finished
    before = (folder / "metrics.jsonl").read_bytes()
    run = json.loads((folder / "run.json").read_text())
    (folder.parent / "again.json").write_text(json.dumps(run))
    result = forked.diablo_ds("train", "--config", folder.parent / "again.json")
    assert "is done: 19 steps" in result.stdout
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_dry_run_prints_everything_and_trains_nothing(options, tmp_path):
    result = forked.diablo_ds("train", "--dry-run", "--output", tmp_path / "run", *options)
    for part in (
        '"learning_rate": 0.01',
        '"stage": 3',
        "global batch 4 = micro batch 2 x accumulation 2 x world size 1; 8 steps",
        "2 x q_proj: 32 -> 32, num_blocks=4, 256 parameters each",
        "Trainable 3,072 of ",
        "base matrices",
        "sharded",
    ):
        assert part in result.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "ds_file", ["zero0.json", "zero1.json", "zero2.json", "zero3_offload.json"]
)
def test_other_stages_from_the_command_line(ds_file, options, tmp_path):
    ds_config = ROOT / "ds_configs" / ds_file
    result = forked.ranks(
        *options, "--ds_config", ds_config, "--output", tmp_path / "run", num_ranks=2
    )
    assert "Done: 8 steps" in result.stdout
    heldout = losses(tmp_path / "run", "heldout_loss")
    assert heldout[8] < heldout[0]


@pytest.mark.filterwarnings("ignore:The distutils:DeprecationWarning")
def test_nvme_offload_where_libaio_is_there(options, tmp_path):
    from diablo_ds.zero.joining import import_deepspeed

    import_deepspeed()
    from deepspeed.ops.op_builder import AsyncIOBuilder

    zero = {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": str(tmp_path / "none")}}
    path = tmp_path / "nvme.json"
    path.write_text(json.dumps({"zero_optimization": zero}))
    run = [*options, "--ds_config", path, "--output", tmp_path / "run"]
    assert_user_error(
        forked.diablo_ds("train", *run, check=False), "NVMe offload needs an existing folder"
    )
    if not AsyncIOBuilder().is_compatible(verbose=False):
        assert_user_error(forked.diablo_ds("train", *run, check=False), "NVMe offload needs")
        pytest.skip("libaio-dev is not installed")
    if not os.environ.get("DIABLO_TEST_NVME"):
        pytest.skip("compiling DeepSpeed's NVMe op takes minutes; DIABLO_TEST_NVME=1 runs it")
    (tmp_path / "none").mkdir()
    diablo_ds("train", *run)
    diablo_ds("train", *options, "--output", tmp_path / "plain")
    assert not list((tmp_path / "none").iterdir())  # what was offloaded is removed
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 needs a GPU")
def test_fp16_skips_overflowing_steps_and_goes_on(options, tmp_path):
    path = tmp_path / "overflow.json"
    fp16 = {"initial_scale_power": 26, "hysteresis": 1}
    path.write_text(json.dumps({"fp16": fp16, "zero_optimization": {"stage": 3}}))
    folder = tmp_path / "run"
    diablo_ds(
        "train",
        *options,
        "--precision",
        "fp16",
        "--max-steps",
        24,
        "--ds_config",
        path,
        "--output",
        folder,
    )
    scales = losses(folder, "loss_scale")
    assert scales[24] < scales[1] / 8
    state = json.loads((folder / "checkpoints" / "step-000024" / "state.json").read_text())
    assert 0 < state["num_optimizer_steps"] < 24
    assert state["loss_scaler"]["cur_scale"] == scales[24]
