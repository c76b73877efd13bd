"""A name given by a user to files: base models and tokenizers; and which model they are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from diablo_ds.adapter.storage import AdapterConfig
from diablo_ds.config.remote_code import trusts_code
from diablo_ds.data.text.tokenization import TOKENIZER_FILES
from diablo_ds.errors import UserError
from diablo_ds.files.cache import cache_folder
from diablo_ds.files.hub import (
    SCHEME,
    Repository,
    cached_hub_file,
    find_repository,
    hub_folder,
    hub_hint,
    is_repository,
    looks_like_hub_name,
)
from diablo_ds.files.named_files import check_no_pipes
from diablo_ds.files.tensor_files import read_header
from diablo_ds.model.built_in import BY_HUB_NAME
from diablo_ds.model.default_model import converted_model

_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


_HUB_COPIES = ["consolidated*", "original/*"]
"""The same weights in their authors' own format."""


_SAMPLES_PER_TENSOR_BYTES = 1024


def hub_model(name: str) -> Repository | None:
    """Return the model of the hub that a user named, or None.

    A name without ``hf://`` could be a mistyped path, and is taken only if it is that of a
    published model whose shape is built in, and no folder here has its owner's name.
    """
    repository = find_repository(name, "model")
    known = BY_HUB_NAME.get(name.lower())
    if repository is None and known is not None and not Path(name).parent.exists():
        return Repository("model", known[1])
    return repository


def find_model(name: str, cache: str = "") -> Path:
    """Return the local folder of a base model, converting or downloading it where needed.

    Args:
        name: "default", a local folder, or a model of the hub; see `hub_model`.
        cache: cache folder for the converted default model; empty for the user's.

    Raises:
        UserError: if the folder or the hub's model does not exist, or is not a causal LM's.
    """
    if name == "default":
        return converted_model(cache_folder(cache))
    folder = Path(name).expanduser()
    if not folder.is_dir():
        repository = hub_model(name)
        if repository is None:
            raise UserError(f"model must be an existing folder; got model={name!r}{hub_hint(name)}")
        files = [*_HUB_FILES, "*.py"] if trusts_code() else _HUB_FILES
        folder = hub_folder(repository, files, ignored=_HUB_COPIES)
    check_no_pipes(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"model folder must hold a config.json; got model={name!r} in {folder}")
    if not list(folder.glob("*.safetensors")):
        raise UserError(
            f"model folder must hold *.safetensors files; got model={name!r} in {folder}"
        )
    return folder


def find_base(given: str, config: AdapterConfig, adapter: Path) -> Path:
    """Return the folder of an adapter's base.

    Args:
        given: name or folder that the user gave; empty for none.
        config: the adapter's config, which records its base.
        adapter: the adapter's path, for the error.

    Raises:
        UserError: if there is none.
    """
    if given:
        return find_model(given)
    recorded = config.base_model
    if not recorded:
        raise UserError("a base must be given where the adapter records none; give it by --base")
    is_of_hub = config.revision and is_repository(recorded, config.revision)
    try:
        return find_model(f"{SCHEME}{recorded}@{config.revision}" if is_of_hub else recorded)
    except UserError as error:
        raise UserError(
            f"{error}; that is the base which {adapter} records; give it by --base"
        ) from None


def lasting_name(name: str) -> str:
    """Return a model's name as it can be written down.

    A folder's path starts at the root of the file system; a model of the hub is "owner/name".

    Args:
        name: as `find_model` takes it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder.absolute())
    repository = hub_model(name)
    return name if repository is None else repository.name


def fingerprint(folder: Path) -> str:
    """Return a hash that tells one base model's weights from another's, in well under a second.

    It covers the safetensors headers (names, shapes, dtypes) and the first 1 KiB of each tensor,
    so it also tells a model from its fine-tuned versions, without reading all of them.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        header, data_offset = read_header(path)
        digest.update(json.dumps(header, sort_keys=True).encode())
        with path.open("rb") as file:
            for entry in header.values():
                start, end = entry["data_offsets"]
                file.seek(data_offset + start)
                digest.update(file.read(min(end - start, _SAMPLES_PER_TENSOR_BYTES)))
    return digest.hexdigest()


def files_of(model: Any) -> Path | None:
    """Return the folder that a model of transformers was loaded from, if it is on this machine.

    Only a folder with safetensors files counts; of a hub's model, the one in the hub's cache.
    """
    name = str(getattr(model, "name_or_path", "") or "")
    folder = Path(name).expanduser()
    if name and not folder.is_dir() and looks_like_hub_name(name):
        revision = getattr(model.config, "_commit_hash", None)
        folder = cached_hub_file(name, "config.json", revision).parent
    return folder if name and any(folder.glob("*.safetensors")) else None


def find_tokenizer(name: str) -> Path:
    """Return the folder or file of a tokenizer, downloading it where needed.

    Args:
        name: "default", a folder, a SentencePiece file (*.model), or a model of the hub.

    Raises:
        UserError: if there is none.
    """
    if name == "default":
        return converted_model(cache_folder())
    path = Path(name).expanduser()
    if path.suffix == ".model" and path.is_file():
        return path
    if not path.is_dir():
        repository = None if path.exists() else hub_model(name)
        if repository is None:
            raise UserError(
                "tokenizer must be an existing folder or a *.model file; got "
                f"tokenizer={name!r}{hub_hint(name)}"
            )
        files = [*TOKENIZER_FILES, "*.py"] if trusts_code() else TOKENIZER_FILES
        path = hub_folder(repository, files)
    check_no_pipes(path)
    if not any((path / file).is_file() for file in TOKENIZER_FILES):
        raise UserError(f"tokenizer folder must hold tokenizer.json; got tokenizer={name!r}")
    return path
