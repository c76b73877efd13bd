"""A model whose class is code in its own folder; the code leaves a mark where it runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

_MODELING = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({mark!r}).touch()


class OwnConfig(LlamaConfig):
    model_type = "own-llama"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def add_code(model: Path, folder: Path, mark: Path) -> Path:
    """Copy a Llama's folder and have its config name a class of its own code."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own-llama",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_own.py").write_text(_MODELING.format(mark=str(mark)))
    return folder
