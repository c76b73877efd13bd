"""The plot of 1 to 1,024 GPUs shows what was planned."""

from __future__ import annotations

import pytest

from benchmarks.gpu.models import flops_per_token as of_modules
from diablo_ds.model.architecture import build_meta_model
from diablo_ds.planning.plot import plot_scaling, scaling_figure
from diablo_ds.planning.search import scaling
from diablo_ds.planning.step_time import flops_per_token
from tests.tiny import FAMILIES
from tests.unit.planning.clusters import CLUSTER, RUN


def test_rate_of_a_gpu_and_mfu_are_curves_and_called_planned(llama, tmp_path):
    found = scaling(llama, CLUSTER, RUN)
    figure = scaling_figure(found, "a model")
    axes = {each.get_ylabel(): each for each in figure.axes}
    assert len(axes) == 4
    assert all("planned" in label for label in axes)
    curves = {
        "tokens/s per GPU, planned": lambda c: c.tokens_per_s / c.cluster.world_size,
        "MFU, planned": lambda c: c.mfu,
    }
    for label, value in curves.items():
        lines = {line.get_label(): line for line in axes[label].get_lines()}
        assert lines.keys() == {c.variant.name for c in found}
        for name, line in lines.items():
            own = [c for c in found if c.variant.name == name]
            assert list(line.get_xdata()) == [c.cluster.world_size for c in own]
            assert list(line.get_ydata()) == [value(c) for c in own]
            assert axes[label].get_ylim()[1] > max(line.get_ydata())
    plot_scaling(found, tmp_path / "plot.png", "a model")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_mfu_counts_the_operations_that_benchmarks_count(llama):
    config = FAMILIES["llama"]
    counted = of_modules(build_meta_model(config), config, RUN.max_length)
    assert flops_per_token(llama.model(RUN), RUN.max_length) == counted
    for c in llama.candidates(CLUSTER):
        rate = RUN.global_batch * RUN.max_length / c.time.total
        assert c.mfu == pytest.approx(rate * counted / (8 * CLUSTER.flops))
