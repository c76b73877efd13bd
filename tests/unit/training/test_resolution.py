"""Open settings become chosen ones: for any ranks and machines, on resume, and as files say."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from diablo_ds.config.batch_resolution import resolve_batch
from diablo_ds.config.continuation import OPEN_SETTINGS, differing_fields
from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import parse_run_config
from diablo_ds.errors import UserError
from diablo_ds.model.architecture import build_meta_model
from diablo_ds.model.deltas import choose_num_blocks
from diablo_ds.training.machine import Machine
from diablo_ds.training.resolution import resolve_run
from tests.tiny import FAMILIES

_WIDER = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
SHAPES = build_meta_model(type(FAMILIES["llama"]).from_dict(FAMILIES["llama"].to_dict() | _WIDER))
"""Of widths that the default number of blocks divides."""
FAST = Machine("fast", "cpu", bf16_factor=0.4)
SLOW = Machine("slow", "cpu", bf16_factor=22.0)
GPU = Machine("a", "cuda")
OLD_GPU = Machine("b", "cuda", has_bf16=False)


def _resolve(machines, config=None, **options):
    return resolve_run(config or RunConfig(), machines, SHAPES, **options)


def _policy(stage: int):
    return {"zero_optimization": {"stage": stage}}


@pytest.mark.parametrize(
    ("machines", "stage", "precision", "reason"),
    [
        ([FAST], 3, "bf16", "0.4 times as long as in fp32 on this CPU"),
        ([SLOW], 3, "fp32", "22 times as long as in fp32 on this CPU"),
        ([FAST, SLOW], 3, "fp32", "on the CPU of slow"),
        ([GPU] * 2, 3, "bf16", "all GPUs have it"),
        ([GPU, OLD_GPU], 2, "fp16", "no bf16 on the GPU of b"),
        ([OLD_GPU], 0, "fp32", "fp16 needs ZeRO stage 1, 2 or 3"),
    ],
)
def test_auto_takes_the_precision_that_all_ranks_are_fast_in(machines, stage, precision, reason):
    resolution = _resolve(machines, policy=_policy(stage))
    assert resolution.run_config.precision == precision
    assert reason in resolution.text()
    assert not resolution.warnings


@pytest.mark.parametrize(
    ("machines", "warning"),
    [
        ([FAST], ""),
        ([FAST, SLOW], "slow on the CPU of slow: .* 22 times as long as in fp32"),
        ([GPU], ""),
        ([GPU, OLD_GPU], "slow on the GPU of b"),
    ],
)
def test_bf16_that_was_asked_for_is_warned_of_where_it_is_slow(machines, warning):
    resolution = _resolve(machines, RunConfig(precision="bf16"))
    assert resolution.run_config.precision == "bf16"
    assert bool(resolution.warnings) == bool(warning)
    assert re.search(warning, "".join(resolution.warnings))


@pytest.mark.parametrize("machines", [[FAST] * 3, [SLOW], [GPU] * 5])
def test_nothing_stays_open_and_the_result_is_chosen_again_from_itself(machines):
    config = _resolve(machines).run_config
    left = [name for name, is_open in OPEN_SETTINGS.items() if getattr(config, name) == is_open]
    assert left == ["base_dropout"]  # this base has none
    again = _resolve(machines, config)
    assert again.run_config == config
    assert again.lines == ()


def test_a_resumed_run_keeps_what_was_chosen():
    recorded = _resolve([SLOW] * 3).run_config
    assert (recorded.precision, recorded.delta_path) == ("fp32", "summed")
    assert differing_fields(recorded, RunConfig()) == []
    resumed = _resolve([FAST], recorded=recorded).run_config
    assert resumed == dataclasses.replace(recorded, micro_batch=3)
    assert (resumed.global_batch, resumed.precision) == (9, "fp32")
    assert differing_fields(recorded, RunConfig(precision="bf16")) == [
        "precision: 'fp32', now 'bf16'"
    ]
    assert differing_fields(recorded, RunConfig(global_batch=8)) == ["global_batch: 9, now 8"]
    with pytest.raises(UserError, match="global_batch=9, world size=4"):
        resolve_batch(RunConfig(), 4, recorded=recorded)


@pytest.mark.parametrize(("machine", "multiple"), [(FAST, 64), (GPU, 8)])
def test_widths_are_few_on_a_cpu_and_stay_as_the_run_has_them(machine, multiple):
    recorded = _resolve([machine]).run_config
    assert recorded.pad_to_multiple_of == multiple
    other = GPU if machine is FAST else FAST
    assert _resolve([other], recorded=recorded).run_config.pad_to_multiple_of == multiple
    older = dataclasses.replace(recorded, pad_to_multiple_of=0)  # before the setting was there
    assert _resolve([machine], recorded=older).run_config.pad_to_multiple_of == 8
    given = _resolve([machine], RunConfig(pad_to_multiple_of=32), recorded=recorded)
    assert given.run_config.pad_to_multiple_of == 32


def test_the_micro_batch_moves_with_the_world_size_of_a_resumed_run():
    recorded = _resolve([FAST] * 8).run_config
    assert (recorded.micro_batch, recorded.global_batch) == (1, 8)
    for world_size, micro_batch in ((1, 4), (2, 4), (4, 2), (8, 1)):
        config = resolve_batch(RunConfig(), world_size, recorded=recorded).run_config
        assert (config.micro_batch, config.global_batch) == (micro_batch, 8)


def test_a_resumed_run_on_another_machine_may_change_its_attention():
    recorded = dataclasses.replace(
        _resolve([GPU]).run_config, attention="flash_attention_2", precision="bf16"
    )
    with_flash = dataclasses.replace(GPU, attentions_by_length=("flash_attention_2",))
    assert _resolve([with_flash], recorded=recorded).run_config.attention == "flash_attention_2"
    resolution = _resolve([GPU], recorded=recorded)
    assert resolution.run_config.attention == "sdpa"
    assert "flash_attention_2, which this run had, is not to be had" in resolution.text()


def test_a_path_of_tritons_needs_a_gpu_and_the_package_on_every_rank():
    config = RunConfig(delta_path="triton", precision="bf16")
    usable = dataclasses.replace(GPU, has_triton=True)
    assert _resolve([usable] * 2, config).run_config.delta_path == "triton"
    with pytest.raises(UserError, match=r"got device cuda, triton not installed on rank 1 \(a\)"):
        _resolve([usable, GPU], config)
    with pytest.raises(UserError, match=r"device cpu, triton installed on rank 0 .*use 'fused'"):
        _resolve([dataclasses.replace(FAST, has_triton=True)], config)


def test_a_resumed_run_may_change_to_a_path_that_rounds_alike():
    recorded = RunConfig(delta_path="triton", precision="bf16")
    assert differing_fields(recorded, RunConfig(delta_path="fused", precision="bf16")) == []
    assert differing_fields(recorded, RunConfig(delta_path="summed", precision="bf16")) == [
        "delta_path: 'triton', now 'summed'"
    ]
    summed = RunConfig(delta_path="triton_summed", precision="bf16")
    assert differing_fields(summed, RunConfig(delta_path="summed", precision="bf16")) == []


def test_run_json_of_earlier_versions_still_loads():
    values = dataclasses.asdict(RunConfig())
    values |= {"precision": "bf16", "micro_batch": 4, "global_batch": 8}
    old = parse_run_config({**values, "targets": []}, Path("run.json"))
    assert (old.delta_path, old.attention) == ("auto", "auto")
    resumed = _resolve([SLOW], recorded=old).run_config
    assert (resumed.precision, resumed.delta_path, resumed.global_batch) == ("bf16", "fused", 8)
    for former, now in (("merged", "summed"), ("triton_merged", "triton_summed")):
        renamed = parse_run_config(
            {**values, "targets": [], "delta_path": former}, Path("run.json")
        )
        assert renamed.delta_path == now
        continued = dataclasses.replace(renamed, delta_path="auto")
        assert differing_fields(renamed, continued) == []
    tokens = parse_run_config(
        {**values, "micro_batch_tokens": 2048, "targets": []}, Path("run.json")
    )
    assert tokens.micro_batch == 0


def test_what_a_deepspeed_config_gives_counts_as_given():
    policy = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 3,
        "bf16": {"enabled": True},
    }
    config = _resolve([SLOW] * 2, policy=policy).run_config
    assert (config.micro_batch, config.global_batch, config.precision) == (2, 12, "bf16")
    given = RunConfig(micro_batch=1, precision="fp32")
    config = _resolve([SLOW] * 2, given, policy={"train_batch_size": 6, **policy}).run_config
    assert (config.micro_batch, config.global_batch, config.precision) == (1, 6, "fp32")
    assert _resolve([FAST], policy={"train_batch_size": "auto"}).run_config.global_batch == 8


def test_machines_that_do_not_go_together_are_refused_by_name():
    with pytest.raises(UserError, match=r"device type .* cuda on rank 0 \(a\) and cpu on rank 1"):
        _resolve([GPU, FAST])
    with_flash = dataclasses.replace(GPU, host="c", attentions_by_length=("flash_attention_3",))
    message = (
        r"attentions of variable .* got none on rank 0 \(a\) and flash_attention_3 on rank 1 \(c\)"
    )
    with pytest.raises(UserError, match=message):
        _resolve([GPU, with_flash])


def test_unequal_threads_are_told():
    few = dataclasses.replace(FAST, host="few", num_threads=1)
    many = dataclasses.replace(FAST, host="many", num_threads=8)
    (warning,) = _resolve([few, many]).warnings
    assert "few have 1 threads, on many 8" in warning


_PROBE = (
    "import json, time, torch\n"
    "from diablo_ds.model.bf16_speed import measure_bf16_factor\n"
    "torch.set_num_threads(2)\n"
    "factors = [measure_bf16_factor(width) for width in (32, 576, 4096)]\n"
    "print(json.dumps([*factors, torch.get_num_threads()]))"
)


@pytest.mark.slow
def test_the_probe_sees_a_cpu_without_bf16_instructions():
    """The slow kind is this CPU, kept from using what is newer than AVX2."""
    slow_kind = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", _PROBE],
        env={**os.environ, **slow_kind},
        capture_output=True,
        text=True,
        check=True,
    )
    *factors, num_threads = json.loads(done.stdout)
    assert min(factors) > 2
    assert num_threads == 2


def test_an_open_block_count_is_the_default_or_the_initial_adapters():
    assert _resolve([FAST]).run_config.num_blocks == "64"
    second = _resolve([FAST], RunConfig(init_adapter="runs/first")).run_config
    assert second.num_blocks == ""
    assert differing_fields(second, RunConfig(init_adapter="runs/first")) == []
    assert differing_fields(second, RunConfig(init_adapter="runs/first", num_blocks="8")) == [
        "num_blocks: '', now '8'"
    ]
    assert "init_adapter: 'runs/first', now ''" in differing_fields(second, RunConfig())


def test_an_open_learning_rate_follows_from_the_width_of_the_blocks():
    chosen = {}
    for n in ("4", "8"):
        resolution = _resolve([FAST], RunConfig(num_blocks=n))
        chosen[n] = resolution.run_config.learning_rate
        assert f"learning rate {chosen[n]:g}: the rule" in resolution.text()
    assert 0 < chosen["4"] < chosen["8"]
    given = _resolve([FAST], RunConfig(num_blocks="4", learning_rate=3e-4))
    assert given.run_config.learning_rate == 3e-4
    assert "learning rate" not in given.text()


def test_block_counts_of_an_adapter_decide_the_learning_rate():
    counts = choose_num_blocks(SHAPES, RunConfig(num_blocks="8"))
    by_adapter = _resolve([FAST], RunConfig(num_blocks="4"), num_blocks=counts)
    by_setting = _resolve([FAST], RunConfig(num_blocks="8"))
    assert by_adapter.run_config.learning_rate == by_setting.run_config.learning_rate


def test_a_continued_run_keeps_the_learning_rate_that_was_chosen():
    recorded = _resolve([FAST], RunConfig(learning_rate=7e-4)).run_config
    kept = _resolve([FAST], RunConfig(), recorded=recorded)
    assert kept.run_config.learning_rate == 7e-4
    assert "learning rate 0.0007: as this run has it" in kept.text()
