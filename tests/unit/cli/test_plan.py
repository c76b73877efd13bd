"""The command `diablo-ds plan`: options, output, errors; without DeepSpeed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from diablo_ds.cli.main import main
from diablo_ds.zero.ds_config import load_ds_config

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
    return CliRunner().invoke(main, ["plan", *map(str, args)])


def test_tables_fit_100_columns_and_mark_one_layout():
    result = _plan(*SHAPE, "--nodes", 2, "--gpus-per-node", 4)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= 100
    assert result.output.count("<- best") == 1
    assert "N=4:" in result.output
    assert "N=8:" in result.output


def test_json_holds_every_layout_in_bytes():
    plan = json.loads(_plan(*SHAPE, "--json").output)
    assert plan["trainable_parameters"]["4"] == 2 * plan["trainable_parameters"]["8"]
    assert len(plan["layouts"]) == 2 * 5 * 4  # block counts, variants on one node, recomputation
    for layout in plan["layouts"]:
        *kinds, total = layout["memory_bytes"].values()
        assert total == sum(kinds)
    assert plan["best"] in plan["layouts"]


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
