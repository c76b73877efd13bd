"""What the fork server of `tests.forked` has behind it: imports, and what libraries then keep."""

from importlib import import_module

for _name in (
    "pytest",
    "torch._inductor.compile_fx",
    "torch.utils.tensorboard",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "psutil",
    "pandas",
    "tensorboard.plugins.hparams.plugin_data_pb2",
    "deepspeed",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.ops.op_builder.cpu",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    *(f"transformers.models.{name}.modeling_{name}" for name in ("llama", "mistral", "qwen2")),
    "transformers.models.gpt_neox.modeling_gpt_neox",
    "transformers.integrations.deepspeed",
    *(
        "diablo_ds.training.train",
        "diablo_ds.training.dry_run",
        "diablo_ds.training.inspection",
        "diablo_ds.data.prepare.pipeline",
    ),
    "tests.distributed.training",
):
    import_module(_name)

# Thousands of patterns, compiled when the first checkpoint is loaded.
import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")
