"""What a compiled layer keeps, by shapes alone, is what PyTorch's own partitioner keeps."""

from __future__ import annotations

import pytest
import torch

from diablo_ds.model.activations import measure_activations
from diablo_ds.model.architecture import build_meta_model
from diablo_ds.model.compilation import compile_layers
from diablo_ds.model.recomputation import Recomputation
from tests.tiny import build_model
from tests.unit.model.test_activations import attach_deltas, really_saved


# What the compiler imports is called old by PyTorch itself, and it looks at gradients of inputs.
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_shapes_alone_tell_what_a_compiled_layer_keeps(family):
    real = attach_deltas(build_model(family, num_key_value_heads=4).to(torch.bfloat16))
    meta_model = attach_deltas(build_meta_model(real.config).to(torch.bfloat16))
    sizes = measure_activations(meta_model, micro_batch=2, length=24)
    try:
        # Splits forward and backward as on a GPU, and compiles neither.
        assert compile_layers(real, backend="aot_eager_decomp_partition") == 2
        seen = really_saved(real, 2, 24)
    finally:
        torch.compiler.reset()
    # Norms' factors, one number per token, are kept or not as it likes.
    assert sizes.compiled_layer == pytest.approx(max(seen.layers), rel=0.01)
    assert sizes.compiled_layer < 0.8 * sizes.layer
    assert sizes.compiled().total(2, Recomputation(0)) < sizes.total(2, Recomputation(0))
