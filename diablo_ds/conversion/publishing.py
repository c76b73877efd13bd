"""Uploading an adapter's folder to the Hugging Face hub, with what must not leave left behind."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diablo_ds.adapter.finding import find_adapter
from diablo_ds.adapter.storage import load_adapter
from diablo_ds.conversion.card import UNKNOWN_BASE, model_card
from diablo_ds.conversion.privacy import find_private_paths, find_secrets
from diablo_ds.conversion.public_names import DEFAULT_BASE, hub_name, without_folders
from diablo_ds.data.text.tokenization import TOKENIZER_FILES
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json
from diablo_ds.files.layout import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_TENSOR_FILE,
    CARD_FILE,
    LOSS_PLOT,
)

_PUBLISHED = (ADAPTER_CONFIG_FILE, ADAPTER_TENSOR_FILE, CARD_FILE, LOSS_PLOT)
_ALSO = ("generation_config.json", "LICENSE", "LICENSE.txt", "chat_template.jinja")
_MOST_SHOWN = 3
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


@dataclass(frozen=True)
class Upload:
    """What would be uploaded: files, and the settings of the repository."""

    repo: str
    """The repository's name on the hub, such as "me/adapter"."""
    is_private: bool
    licence: str
    """Empty if not known."""
    base_model: str
    files: Mapping[str, Path | bytes]
    """Content by name, or the file that holds it."""
    skipped: tuple[str, ...]
    """Names in the folder that are not uploaded."""

    def text(self) -> str:
        """Return settings and files as lines for a person."""
        sizes = {name: _size(content) for name, content in self.files.items()}
        lines = [
            f"Repository {self.repo}",
            "  type         model",
            f"  visibility   {'private' if self.is_private else 'public'}",
            f"  licence      {self.licence or 'not known; give it by --licence'}",
            f"  base model   {self.base_model}",
            f"Files, {sum(sizes.values()):,} bytes",
            *(f"  {size:>13,}  {name}" for name, size in sizes.items()),
        ]
        if self.skipped:
            lines.append(f"Not uploaded: {', '.join(self.skipped)}")
        return "\n".join(lines)


def plan_upload(
    path: Path, repo: str, *, base_model: str = "", private: bool = True, licence: str = ""
) -> Upload:
    """Decide what is uploaded, and refuse what others could not load or should not see.

    Args:
        path: an adapter, a checkpoint or the folder of a run that is done.
        repo: the repository's name on the hub.
        base_model: name of the base model on the hub, in place of the one that is recorded.
        private: whether a new repository is private.
        licence: identifier of the licence on the hub, in place of the card's.

    Raises:
        UserError: if the adapter does not load strictly, its base has no name that others could
            load, or a file holds a secret or a path of this machine.
    """
    if not _HUB_NAME.fullmatch(repo) or "/" not in repo:
        raise UserError(f"repo must be owner/name on the hub; got repo={repo!r}")
    folder = find_adapter(path)
    if not (folder / ADAPTER_CONFIG_FILE).is_file():
        raise UserError(
            f"an adapter to be published must have the present form; got {folder}, of an early "
            f"version; convert it: python -m diablo_ds.adapter.early_format {folder} NEW"
        )
    tensors, config = load_adapter(folder)
    if base_model:
        if not _HUB_NAME.fullmatch(base_model):
            raise UserError(f"base_model must be a name on the hub; got base_model={base_model!r}")
    elif not (base_model := "" if config.base_model == "default" else hub_name(config.base_model)):
        raise UserError(
            "the base model must have a name that others can load; got base_model="
            f"{config.base_model!r} in {folder}; give its name on the hub by --base-model"
        )
    card_file = folder / CARD_FILE
    if card_file.is_file():
        card = _read_text(card_file)
    else:
        card = model_card(config, sum(tensor.numel() for tensor in tensors.values()))
    card = card.replace(UNKNOWN_BASE, base_model)
    if config.base_model == "default":  # the user may name another copy of it
        card = card.replace(DEFAULT_BASE, base_model)
    card, licence = _complete_card(card, base_model, licence, card_file)
    files, skipped = _list_files(folder)
    values = read_json(folder / ADAPTER_CONFIG_FILE)
    values["base_model_name_or_path"] = base_model
    values["parent"] = _without_folders(values.get("parent"))
    files[ADAPTER_CONFIG_FILE] = (json.dumps(values, indent=2) + "\n").encode()
    files[CARD_FILE] = card.encode()
    _check_privacy(files, folder)
    return Upload(repo, private, licence, base_model, dict(sorted(files.items())), skipped)


def push(upload: Upload, message: str = "Upload of a DiaBlo adapter") -> str:
    """Create the repository where there is none, and upload all files in one commit.

    Returns:
        The address of the repository.

    Raises:
        UserError: if nobody is logged in, the hub cannot be reached or refuses, or the repository
            is public although a private one was asked for.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if not get_token():
        raise UserError(
            "pushing needs a login at the hub; got none; run hf auth login, or set HF_TOKEN"
        )
    api = HfApi()
    operations = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in upload.files.items()
    ]
    try:
        url = str(api.create_repo(upload.repo, private=upload.is_private, exist_ok=True))
        if upload.is_private and api.repo_info(upload.repo).private is False:
            raise UserError(
                f"a repository that exists must be private as well; got {upload.repo}, which is "
                "public; give --public to publish the adapter"
            )
        api.create_commit(upload.repo, operations, commit_message=message)
    except UserError:
        raise
    except Exception as error:  # the hub client raises many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"the hub must take the upload; got {upload.repo}: {reason}") from None
    return url


def _complete_card(text: str, base_model: str, licence: str, file: Path) -> tuple[str, str]:
    """Return a card with base model and licence in its front matter, and the licence."""
    from huggingface_hub import ModelCard

    try:
        card = ModelCard(text)
        data: Any = card.data
        data.base_model, data.library_name = base_model, "peft"
        if licence:
            data.license = licence
        found = data.get("license")
    except Exception as error:  # YAML and the hub's own checks raise many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"a model card must have valid front matter; got {file}: {reason}"
        ) from None
    return str(card), found if isinstance(found, str) else ""


def _list_files(folder: Path) -> tuple[dict[str, Path | bytes], tuple[str, ...]]:
    wanted = {*_PUBLISHED, *_ALSO, *TOKENIZER_FILES}
    files: dict[str, Path | bytes] = {}
    skipped = []
    for path in sorted(folder.iterdir()):
        if path.name in wanted and path.is_file() and not path.is_symlink():
            files[path.name] = path
        else:
            skipped.append(path.name)
    return files, tuple(skipped)


def _check_privacy(files: Mapping[str, Path | bytes], folder: Path) -> None:
    for name, content in files.items():
        if Path(name).suffix not in (".json", ".md", ".txt", ".jinja") and name != "LICENSE":
            continue
        text = content.decode() if isinstance(content, bytes) else _read_text(content)
        is_vocabulary = name in TOKENIZER_FILES
        if found := find_secrets(text, is_prose=not is_vocabulary):
            raise UserError(
                f"published files must hold no secrets; got {'; '.join(found[:_MOST_SHOWN])} in "
                f"{folder / name}; take it out, and revoke it if others could read it"
            )
        if not is_vocabulary and (found := find_private_paths(text)):
            raise UserError(
                "published files must name no path of this machine; got "
                f"{'; '.join(found[:_MOST_SHOWN])} in {folder / name}; edit the file"
            )


def _without_folders(value: Any) -> Any:
    """Return a JSON value whose paths are cut to their last part."""
    if isinstance(value, dict):
        return {name: _without_folders(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    return without_folders(value) if isinstance(value, str) else value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"published text must be UTF-8; got {path}") from None


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
