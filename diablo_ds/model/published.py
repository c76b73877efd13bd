"""Configs of models without their files: of published models, or from widths that are given."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from diablo_ds.errors import UserError
from diablo_ds.files.hub import hub_folder, hub_hint
from diablo_ds.model.architecture import load_model_config
from diablo_ds.model.built_in import BUILT_IN, BuiltIn, find_built_in
from diablo_ds.model.finding import hub_model
from diablo_ds.model.shape import Shape

_NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def find_model_config(model: str, shape: Shape, length: int) -> tuple[Any, str]:
    """Return a model's Hugging Face config, and the name that a run takes.

    Args:
        model: a built-in model's short name or hub name, "default", a folder, another model of the
            hub by ``hf://owner/name``, or empty where ``shape`` says all.
        shape: widths that differ from the model's.
        length: tokens per sequence; a model given by its shape has at least that many positions.

    Raises:
        UserError: if there is no such model, or the shape is incomplete.
    """
    changes = {name: value for name, value in asdict(shape).items() if value is not None}
    if not model:
        return _build_config("llama", _checked_widths(changes), length), "PATH_OF_YOUR_MODEL"
    # A folder's own config says more than its name.
    is_folder = (Path(model).expanduser() / "config.json").is_file()
    found = None if is_folder else find_built_in("smollm2-135m" if model == "default" else model)
    if found is not None:
        built_in, hub_name = found
        values = {**asdict(built_in.shape), **changes}
        run_name = "PATH_OF_YOUR_MODEL" if changes else hub_name
        model_config = _build_config(built_in.family, values, length, built_in)
        return model_config, "default" if model == "default" and not changes else run_name
    model_config = load_model_config(_config_folder(model))
    text = model_config.get_text_config()
    for name, value in changes.items():
        setattr(text, name, value)
    return model_config, "PATH_OF_YOUR_MODEL" if changes else model


def _checked_widths(changes: dict[str, Any]) -> dict[str, Any]:
    missing = [name for name in (*_NEEDED, "vocab_size") if name not in changes]
    if missing:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise UserError(
            "a model must be given by --model or by all of its widths; got none of "
            f"{options}; built in are {', '.join(BUILT_IN)}"
        )
    return {"num_key_value_heads": changes["num_attention_heads"], **changes}


def _build_config(
    family: str, values: dict[str, Any], length: int, built_in: BuiltIn | None = None
) -> Any:
    from transformers import AutoConfig

    heads, hidden = values["num_attention_heads"], values["hidden_size"]
    head_dim = built_in.head_dim if built_in is not None else None
    # A head's own width needs no hidden size that the heads divide.
    if (not head_dim and hidden % heads) or heads % values["num_key_value_heads"]:
        raise UserError(
            "hidden_size must be a multiple of num_attention_heads, and that one of "
            f"num_key_value_heads; got hidden_size={hidden}, num_attention_heads={heads}, "
            f"num_key_value_heads={values['num_key_value_heads']}"
        )
    values = {**values, "max_position_embeddings": max(length, 2048)}
    if head_dim:
        values["head_dim"] = head_dim
    if built_in is None or not built_in.vision:
        return AutoConfig.for_model(family, **values)
    tied = values["tie_word_embeddings"]
    return AutoConfig.for_model(
        family, text_config=values, vision_config=dict(built_in.vision), tie_word_embeddings=tied
    )


def _config_folder(model: str) -> Path:
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return folder
    repository = None if folder.exists() else hub_model(model)
    if repository is None:
        raise UserError(
            "model must be a folder with a config.json or a built-in shape; got "
            f"model={model!r}{hub_hint(model)}; built in are {', '.join(BUILT_IN)}"
        )
    try:
        return hub_folder(repository, ["config.json"])
    except UserError as error:
        raise UserError(f"{error}; built in are {', '.join(BUILT_IN)}") from None
