"""The text that a model is asked with, rendered as the examples of its training were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from diablo_ds.config.choices import AUTO, CHAT, CONTROL_TOKENS, PLAIN, READ, TEXT
from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import load_run_config
from diablo_ds.data.corpora.columns import parse_columns, with_field_names
from diablo_ds.data.corpora.families import find_kind
from diablo_ds.data.corpora.fields import RowError
from diablo_ds.data.corpora.prompts import Request, encode_prompts
from diablo_ds.data.corpora.raw_rows import Unreadable, parse
from diablo_ds.data.corpora.reading import read_rows
from diablo_ds.data.corpora.sources import split_name
from diablo_ds.data.dataset_files import is_tokenised
from diablo_ds.data.prepare.manifest import load_manifest
from diablo_ds.data.run_sources import data_files
from diablo_ds.data.text.templates import PROMPTS
from diablo_ds.data.text.tokenization import Tokenizer
from diablo_ds.errors import UserError
from diablo_ds.files.layout import RunFolder


def run_of(adapter: Path) -> RunConfig | None:
    """Return the run config of the run whose folder an adapter or a checkpoint lies in, if any."""
    for folder in list(adapter.resolve().parents)[:2]:
        if RunFolder(folder).run_config.is_file():
            return load_run_config(RunFolder(folder).run_config)
    return None


class TrainedTemplate(NamedTuple):
    """The template of a run's training data."""

    name: str
    """One of `PROMPTS`, "chat", or "auto" where it cannot be found."""
    is_given: bool
    """Whether the user chose it, for the run or for its prepared dataset."""
    control_tokens: str = AUTO
    """What control tokens in the text of the template plain were."""


class PromptForm(NamedTuple):
    """How questions become the tokens of prompts."""

    template: str
    """One of `PROMPTS`, or "chat"."""
    origin: str
    """Where it is from, for the user."""
    control_tokens: str = AUTO
    """What control tokens in the text of the template plain are; see `encode_prompts`."""

    @property
    def text(self) -> str:
        """What prompts depend on, in words."""
        known = {READ: "control tokens read", TEXT: "control tokens as text"}
        return ", ".join(filter(None, [self.template, known.get(self.control_tokens)]))


def prompt_form(template: str, origin: str, control_tokens: str = AUTO) -> PromptForm:
    """Return how prompts are made; control tokens matter to the template plain only."""
    return PromptForm(template, origin, control_tokens if template == PLAIN else AUTO)


def trained_template(run_config: RunConfig) -> TrainedTemplate:
    """Return the template that a run's training data were rendered with."""
    found = _find_template(run_config)
    if run_config.control_tokens == AUTO:  # then a prepared dataset may say it
        return found
    return found._replace(control_tokens=run_config.control_tokens)


def _find_template(run_config: RunConfig) -> TrainedTemplate:
    if run_config.template != AUTO:
        return TrainedTemplate(run_config.template, True)
    if run_config.has_default_data:
        return TrainedTemplate("gsm8k", False)  # which the default data are
    try:
        folder = Path(split_name(run_config.data[0])[1]).expanduser()
        if is_tokenised(folder):
            return _template_of_dataset(folder)
        return TrainedTemplate(_template_of_rows(run_config), False)
    except (UserError, RowError, OSError, StopIteration, IndexError):
        return TrainedTemplate(AUTO, False)


def choose_template(given: str, run_config: RunConfig | None, tokenizer: Tokenizer) -> PromptForm:
    """Return the form of prompts: control tokens are what they were in the training data.

    Args:
        given: what the user chose, or "auto".
        run_config: of the run that trained the adapter; None where it is not known.
        tokenizer: has the chat template, if there is one.

    Raises:
        UserError: if the template is chat, and the tokenizer has none.
    """
    template, origin, control_tokens = given, "as given", AUTO
    if run_config is not None:
        trained, is_given, control_tokens = trained_template(run_config)
        if template == AUTO:
            template, origin = trained, "as trained" if is_given else "of the training data"
    if template == AUTO:
        template = CHAT if tokenizer.chat is not None else PLAIN
        origin = "since the run's is not known; choose another by --template"
    check_template(template, tokenizer)
    return prompt_form(template, origin, control_tokens)


def check_template(template: str, tokenizer: Tokenizer) -> None:
    """Raise UserError if the template is chat, and the tokenizer has none."""
    if template == CHAT and tokenizer.chat is None:
        raise UserError(
            "template chat needs a tokenizer with a chat template; got one without; choose one of "
            f"{', '.join(PROMPTS)}"
        )


def _template_of_dataset(folder: Path) -> TrainedTemplate:
    """Return the template that all rows of a prepared dataset have, as its manifest says."""
    manifest = load_manifest(folder)
    options = manifest.get("options")
    given = options.get("template") if isinstance(options, dict) else None
    control_tokens = options.get("control_tokens") if isinstance(options, dict) else None
    control_tokens = control_tokens if control_tokens in CONTROL_TOKENS else AUTO
    if given in (*PROMPTS, CHAT):
        return TrainedTemplate(given, True, control_tokens)
    by_kind = manifest.get("templates")
    names = set(by_kind.values()) if isinstance(by_kind, dict) else set()
    name = names.pop() if len(names) == 1 else AUTO
    return TrainedTemplate(name if name in (*PROMPTS, CHAT) else AUTO, False, control_tokens)


def _template_of_rows(run_config: RunConfig) -> str:
    """Return the template of a run's first row of raw data."""
    row = next(read_rows(data_files(run_config, "train")[0]))
    fields = parse(row.value)
    if isinstance(fields, Unreadable):
        return AUTO
    named = with_field_names(fields, parse_columns(run_config.column))
    return find_kind(run_config.corpus, named).template or AUTO


def encode_prompt(
    messages: Sequence[Mapping[str, str]],
    template: str,
    tokenizer: Tokenizer,
    control_tokens: str = AUTO,
) -> list[int]:
    """Return the tokens of a prompt, up to where the answer begins.

    Args:
        messages: "role" and "content" of each; a single one of the user but for the template chat.
        template: one of `PROMPTS`, or "chat".
        tokenizer: the model's.
        control_tokens: see `encode_prompts`.

    Raises:
        UserError: if the chat template does not accept the messages, or there is no token.
    """
    last = messages[-1]["content"]
    request = Request(messages=messages) if template == CHAT else Request(last)
    (ids,) = encode_prompts([request], template, tokenizer, control_tokens)
    return list(ids)
