"""Code that a model's config names: refused, or loaded where the user trusts it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diablo_ds.config.remote_code import trusts_code
from diablo_ds.errors import UserError

_MODEL = "AutoModelForCausalLM"


def check_remote_code(values: Mapping[str, Any], file: Path, *, is_known: bool) -> None:
    """Refuse a config whose model exists only as code that it brings, unless that is trusted.

    Args:
        values: of the config.
        file: config.json.
        is_known: whether transformers has a model of this type, which is taken then.

    Raises:
        UserError: if it names code that is not trusted, or that of another repository.
    """
    named = values.get("auto_map")
    if not isinstance(named, dict) or (is_known and not trusts_code()):
        return
    if not trusts_code():
        raise UserError(
            "a model must be one that transformers knows, for code that a model brings is not run; "
            f"got model_type={values['model_type']!r} and auto_map in {file}; read the code, and "
            "give --trust-remote-code to run it with your rights"
        )
    for place in named.values():
        for text in place if isinstance(place, list) else [place]:
            if text is not None and (not isinstance(text, str) or "--" in text):
                raise UserError(
                    f"code of a model must be in its own folder; got auto_map={text!r:.60} in "
                    f"{file}; download that repository's files too, and name them without it"
                )


def load_remote_model_class(model_config: Any, folder: Path) -> None:
    """Make the model class of a config that came as trusted code known to transformers.

    From then on the config's model is built like any other.

    Raises:
        UserError: if it names no causal LM, or one of another config.
    """
    from transformers import AutoModelForCausalLM
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    named = getattr(model_config, "auto_map", None) or {}
    if type(model_config).__module__.partition(".")[0] != "transformers_modules":
        return
    if _MODEL not in named:
        raise UserError(f"code of a model must hold a causal LM; got no {_MODEL} in {folder}")
    model_class = get_class_from_dynamic_module(named[_MODEL], str(folder))
    AutoModelForCausalLM.register(type(model_config), model_class, exist_ok=True)
