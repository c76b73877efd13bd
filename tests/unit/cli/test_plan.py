"""The command `diablo-ds plan`: options, output, errors; without DeepSpeed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from diablo_ds.cli.main import main
from diablo_ds.zero.ds_config import load_ds_config
from tests.overriding import with_last_options

WIDTHS = {
    "hidden-size": 64,
    "intermediate-size": 128,
    "num-hidden-layers": 4,
    "num-attention-heads": 4,
    "num-key-value-heads": 2,
    "vocab-size": 512,
}
SHAPE = [
    *(f"--{name}={width}" for name, width in WIDTHS.items()),
    "--max-length=128",
    "--num-blocks=4",
    "--num-blocks=8",
]


def _plan(*args):
    return CliRunner().invoke(main, with_last_options(["plan", *args]))


def test_tables_fit_100_columns_and_mark_one_layout():
    result = _plan(*SHAPE, "--nodes", 2, "--gpus-per-node", 4)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines()[1:])) <= 100
    assert result.output.count("<- best") == 1
    assert "N=4:" in result.output
    assert "N=8:" in result.output


def test_json_holds_every_layout_in_bytes():
    plan = json.loads(_plan(*SHAPE, "--json").output)
    assert plan["trainable_parameters"]["4"] == 2 * plan["trainable_parameters"]["8"]
    # Block counts, micro batches, variants on one node, recomputation.
    assert len(plan["layouts"]) == 2 * 3 * 5 * 4
    for layout in plan["layouts"]:
        *kinds, total = layout["memory_bytes"].values()
        assert total == sum(kinds)
    assert plan["best"] in plan["layouts"]


def test_a_plan_begins_with_a_sentence_and_shows_at_most_eight_layouts(tmp_path):
    result = _plan(*SHAPE, "--num-blocks=16", "--num-blocks=32", "--nodes", 2, "--tokens", 10**9)
    first, *others = result.output.splitlines()
    assert first.startswith("model by shape fits on 16 x h100 with ZeRO-")
    hours = "hours for 1,000,000,000 tokens"
    for words in ("micro batch 4", "tokens/s", "of 80 GB per GPU", hours):
        assert words in first
    ruled = next(i for i, line in enumerate(others) if line.startswith("---"))
    rows = others[ruled + 1 : next(i for i, line in enumerate(others) if "Micro:" in line)]
    assert len(rows) == 8
    assert "more layouts" in result.output
    everything = _plan(*SHAPE, "--all").output
    assert "more layouts" not in everything
    assert "GB per rank" in everything


def test_hours_are_those_of_the_data(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("x" * 4000)
    plan = json.loads(_plan(*SHAPE, "--data", data, "--json").output)
    assert plan["tokens"] == 1000
    assert plan["hours"] == pytest.approx(1000 / plan["best"]["tokens_per_s"] / 3600)
    assert "1,000 tokens (about, at 4 bytes of file per token)" in plan["sentence"]


def test_output_holds_config_commands_and_plot(tmp_path):
    result = _plan(*SHAPE, "--output", tmp_path / "plan")
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "plan").iterdir()}
    scripts = {"launch.sh", "slurm.sh"}
    assert names == scripts | {"ds_config.json", "plan.json", "plan.txt", "scaling.png"}
    assert load_ds_config(tmp_path / "plan" / "ds_config.json")
    plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert {layout["num_gpus"] for layout in plan["scaling"]} == {2**n for n in range(11)}


def test_a_model_that_fits_nowhere_is_an_error_that_says_what_would_fit():
    args = ("--gpu-memory", 2.0001, "--reserve", 2, "--gpus-per-node", 1)
    result = _plan(*SHAPE, *args)
    assert result.exit_code == 2
    assert "too large" in result.output
    assert "does not fit on 1 x h100, not even at micro batch 1." in result.output
    assert "what would fit: GPUs of" in result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--model", "no-such/model/anywhere"), "built-in shape; got model="),
        (("--global-batch", 3), "global_batch must be a multiple"),
        (("--num-blocks", 7), "num_blocks must divide both widths"),
        (("--gpu-memory", 1), "gpu_memory must be larger than the reserve"),
        (("--tflops", -1), "tflops must be > 0"),
        (("--link-share", 0), "link_share must be > 0"),
        (("--reserve", "nan"), "reserve must be a finite number; got reserve=nan"),
        (("--node-memory", -5), "node_memory must be >= 0"),
        (("--tokens", 0), "tokens must be >= 1"),
        (("--data", "no-such-file"), "data must be a file, a folder or a prepared dataset"),
        (("--data", "x", "--tokens", 5), "tokens must be counted from data or given; got both"),
        (("--nodes", 10**30), "must be <= 2147483647"),
        (("--hidden-size", 63), "hidden_size must be a multiple of num_attention_heads"),
    ],
)
def test_mistakes_end_with_exit_code_2(args, message):
    result = _plan(*SHAPE, *args)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.slow
def test_deepspeed_is_not_imported():
    code = (
        "import sys; from click.testing import CliRunner; from diablo_ds.cli.main import main; "
        f"result = CliRunner().invoke(main, ['plan', *{SHAPE!r}]); "
        "sys.exit(result.exit_code or 'deepspeed' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
