"""Plans: sizes, memory, links and time from shapes; the choice; what is written."""

from __future__ import annotations

import dataclasses
import json

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.model.architecture import build_meta_model, num_elements
from diablo_ds.model.published import BUILT_IN, find_model_config
from diablo_ds.model.recomputation import Recomputation
from diablo_ds.model.shape import Shape
from diablo_ds.planning import output
from diablo_ds.planning.communication import Layout, link_bytes, step_traffic
from diablo_ds.planning.hardware import Assumptions, ClusterSize
from diablo_ds.planning.memory import rank_memory
from diablo_ds.planning.plan import VARIANTS, Planner, cluster_sizes, fastest
from diablo_ds.zero.ds_config import load_ds_config
from diablo_ds.zero.traffic import BASE_GATHERS
from tests.tiny import FAMILIES

RUN = RunConfig(num_blocks="4", micro_batch=2, global_batch=16, max_length=64, precision="bf16")
CLUSTER = ClusterSize(
    num_nodes=2,
    ranks_per_node=4,
    memory_bytes=1e9,
    reserved_bytes=0,
    node_memory_bytes=1e12,
    flops=1e12,
    memory_bandwidth=1e11,
    inside_bandwidth=1e10,
    between_bandwidth=1e9,
)
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "smollm2-135m": 134_515_008,
}
"""Parameters in the published checkpoints, a tied head counted once."""


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen2", "gpt_neox"])
def planner(request):
    return Planner(FAMILIES[request.param], RUN, Assumptions())


@pytest.fixture(scope="module")
def llama():
    return Planner(FAMILIES["llama"], RUN, Assumptions())


def _with_memory(num_bytes: float) -> ClusterSize:
    return dataclasses.replace(CLUSTER, memory_bytes=num_bytes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_built_in_shapes_have_the_published_number_of_parameters(name):
    config, _ = find_model_config(name, Shape(), 512)
    assert num_elements(build_meta_model(config)) == PUBLISHED[name]


def test_a_shape_changes_a_built_in_model_and_names_no_checkpoint():
    config, run_name = find_model_config("llama-3-8b", Shape(num_hidden_layers=2), 512)
    assert config.num_hidden_layers == 2
    assert run_name not in {built_in.hub_name for built_in in BUILT_IN.values()}


@pytest.mark.parametrize("shape", [Shape(), Shape(hidden_size=64)])
def test_a_model_without_name_needs_all_widths(shape):
    with pytest.raises(UserError, match=r"by all of its widths; got none of .*--vocab-size"):
        find_model_config("", shape, 512)


def test_weights_of_a_rank_are_those_of_the_placement(planner):
    model = planner.model(RUN)
    for world_size in (1, 8):
        layout = Layout(stage=3, world_size=world_size, ranks_per_node=4)
        memory = rank_memory(model, layout, Recomputation(0), 128, gathers=None, buckets=(0, 1))
        placed = sum(p.bytes_per_rank(world_size, 3) for p in model.parameters)
        # All deltas count as one here, so that each may be padded less.
        assert 0 <= placed - (memory.base + memory.deltas) < 2 * world_size * len(model.parameters)
        assert memory.gathered == 0


def test_higher_stages_need_less_memory_and_stage_3_moves_the_base(planner):
    found = [c for c in planner.candidates(CLUSTER) if not c.recomputation.num_layers]
    base = [c.memory.base for c in found if not c.variant.hpz]
    optimizer = [c.memory.optimizer for c in found if not c.variant.hpz]
    assert base == sorted(base, reverse=True)
    assert optimizer == sorted(optimizer, reverse=True)
    moved = {c.variant.name: {kind for kind, _ in c.traffic} for c in found}
    assert all((BASE_GATHERS in moved[v.name]) == (v.stage == 3) for v in VARIANTS)


def test_with_secondary_shards_only_deltas_cross_nodes(planner):
    found = {c.variant.name: c for c in planner.candidates(CLUSTER)}
    whole, inside = found["ZeRO-3"], found["ZeRO-3 hpZ"]
    deltas = sum(n for (kind, _), n in inside.traffic.items() if kind != BASE_GATHERS)
    assert inside.links.between == pytest.approx(deltas * 7 / 8)
    assert whole.links.between > inside.links.between
    assert whole.memory.base < inside.memory.base


def test_checkpointing_trades_time_for_activations(planner):
    own = [c for c in planner.candidates(CLUSTER) if c.variant.name == "ZeRO-2"]
    assert len(own) == 3  # none, half, all of two layers
    activations = [c.memory.activations for c in own]
    assert activations == sorted(activations, reverse=True)
    assert [c.time.compute for c in own] == sorted(c.time.compute for c in own)


def test_the_best_is_the_fastest_that_fits(llama):
    candidates = list(llama.candidates(CLUSTER))
    least = min(c.memory.total for c in candidates)
    for num_bytes in sorted({c.memory.total for c in candidates}):
        cluster = _with_memory(num_bytes)
        best = llama.best(cluster)
        assert best is not None
        assert best.memory.total <= num_bytes
        rivals = [c for c in llama.candidates(cluster) if c.memory.total <= num_bytes]
        assert best.tokens_per_s == max(c.tokens_per_s for c in rivals)
    assert llama.best(_with_memory(least - 1)) is None


def test_where_nothing_fits_it_says_what_would(llama):
    least = min(llama.candidates(CLUSTER), key=lambda c: c.memory.total)
    text = llama.advice(_with_memory(least.memory.total * 0.9))
    assert f"GPUs of {least.memory.total / 1e9:,.0f} GB" in text
    assert "micro batch 1" in text
    # What it says does fit.
    smaller = dataclasses.replace(RUN, micro_batch=1)
    assert llama.best(_with_memory(least.memory.total * 0.9), smaller) is not None


def test_host_memory_limits_offload(llama):
    cluster = dataclasses.replace(CLUSTER, node_memory_bytes=1)
    offloaded = [c for c in llama.candidates(cluster) if c.variant.offload]
    assert offloaded
    assert not any(c.fits for c in offloaded)


def test_a_ring_moves_each_part_over_every_link_once(llama):
    model = llama.model(RUN)
    layout = Layout(stage=2, world_size=8, ranks_per_node=4)
    traffic = step_traffic(model, layout)
    links = link_bytes(model, layout, traffic, None)
    # An all-reduce in fp32, which moves all twice, and a gather in bf16.
    assert links.inside == links.between == model.num_deltas * (2 * 4 + 2) * 7 / 8
    alone = dataclasses.replace(layout, world_size=4)
    assert link_bytes(model, alone, step_traffic(model, alone), None).between == 0


def test_clusters_grow_from_one_gpu_to_1024():
    sizes = [size.world_size for size in cluster_sizes(CLUSTER)]
    assert sizes == [2**n for n in range(11)]


def test_scaling_keeps_the_work_of_a_rank(llama):
    found = llama.scaling(CLUSTER)
    assert {c.run.global_batch // c.cluster.world_size for c in found} == {2}
    of_one = [c for c in found if c.cluster.world_size == 1]
    assert fastest(of_one).traffic == {}


def test_the_written_config_is_one_that_a_run_accepts(llama, tmp_path):
    cluster = _with_memory(1e9)
    for candidate in llama.candidates(cluster):
        output.write_output(tmp_path, llama, candidate, "org/model", "a table", {"plan": 1})
        policy = load_ds_config(tmp_path / output.DS_CONFIG_FILE)
        zero = policy["zero_optimization"]
        assert "auto" not in zero.values()
        assert zero["stage"] == candidate.variant.stage
        text = (tmp_path / output.SLURM_FILE).read_text()
        assert "--nodes 2 --gpus-per-node 4" in text
        run = output.planned_run(candidate, "org/model")
        count = candidate.recomputation.num_layers
        assert run.gradient_checkpointing == (count > 0)
        assert run.checkpointed_layers == (1 if count == 1 else 0)
    assert json.loads((tmp_path / output.PLAN_FILE).read_text()) == {"plan": 1}
