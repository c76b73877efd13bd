"""What the fork server of `tests.forked` has behind it: imports, and what libraries then keep."""

from importlib import import_module
from pathlib import Path

import diablo_ds

for _name in (
    "pytest",
    "torch._inductor.compile_fx",
    "torch.utils.tensorboard",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "psutil",
    "pandas",
    "pyarrow.compute",
    "pyarrow.parquet",
    "datasets",
    "tensorboard.plugins.hparams.plugin_data_pb2",
    "deepspeed",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.ops.op_builder.cpu",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    *(f"transformers.models.{name}.modeling_{name}" for name in ("llama", "mistral", "qwen2")),
    "transformers.models.gpt_neox.modeling_gpt_neox",
    "transformers.integrations.deepspeed",
    "tests.distributed.training",
):
    import_module(_name)

# All of this package that needs no other package and runs nothing as it is imported.
_OTHERS = ("__main__", "adapter/kernels/", "evaluation/sandbox/", "launcher/script/", "peft/")
_PACKAGE = Path(diablo_ds.__file__).parent
for _path in sorted(_PACKAGE.rglob("*.py")):
    _name = _path.relative_to(_PACKAGE).with_suffix("").as_posix()
    if not _name.startswith(_OTHERS):
        import_module(f"diablo_ds.{_name.removesuffix('__init__').replace('/', '.')}".rstrip("."))

# Thousands of patterns, compiled when the first checkpoint is loaded.
import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")
