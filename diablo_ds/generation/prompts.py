"""The text that a model is asked with, rendered as the examples of its training were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from diablo_ds.config.choices import AUTO, CHAT, PLAIN
from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import load_run_config
from diablo_ds.data.corpora.columns import parse_columns, with_field_names
from diablo_ds.data.corpora.families import find_kind
from diablo_ds.data.corpora.fields import RowError
from diablo_ds.data.corpora.raw_rows import Unreadable, parse
from diablo_ds.data.corpora.reading import read_rows
from diablo_ds.data.loading import data_files
from diablo_ds.data.text.templates import PROMPTS, Segment
from diablo_ds.data.text.tokenization import EncodableText, Tokenizer
from diablo_ds.errors import UserError
from diablo_ds.files.layout import RunFolder


def run_of(adapter: Path) -> RunConfig | None:
    """Return the run config of the run whose folder an adapter or a checkpoint lies in, if any."""
    for folder in list(adapter.resolve().parents)[:2]:
        if RunFolder(folder).run_config.is_file():
            return load_run_config(RunFolder(folder).run_config)
    return None


def choose_template(
    given: str, run_config: RunConfig | None, tokenizer: Tokenizer
) -> tuple[str, str]:
    """Return the template of prompts, and where it is from, for the user.

    Args:
        given: what the user chose, or "auto".
        run_config: of the run that trained the adapter; None where it is not known.
        tokenizer: has the chat template, if there is one.

    Raises:
        UserError: if the template is chat, and the tokenizer has none.
    """
    template, origin = given, "as given"
    if template == AUTO and run_config is not None:
        template, origin = run_config.template, "as trained"
        if template == AUTO:
            template, origin = _template_of_data(run_config), "of the training data"
    if template == AUTO:
        template = CHAT if tokenizer.chat is not None else PLAIN
        origin = "since the run's is not known; choose another by --template"
    if template == CHAT and tokenizer.chat is None:
        raise UserError(
            "template chat needs a tokenizer with a chat template; got one without; choose one of "
            f"{', '.join(PROMPTS)}"
        )
    return template, origin


def _template_of_data(run_config: RunConfig) -> str:
    """Return the template of a run's first row of raw data; "auto" where it cannot be found."""
    if run_config.data == "default":
        return "gsm8k"  # which the default data are
    try:
        row = next(read_rows(data_files(run_config, "train")[0]))
        fields = parse(row.value)
        if isinstance(fields, Unreadable):
            return AUTO
        named = with_field_names(fields, parse_columns(run_config.column))
        return find_kind(run_config.corpus, named).template or AUTO
    except (UserError, RowError, OSError, StopIteration, IndexError):
        return AUTO


def encode_prompt(
    messages: Sequence[Mapping[str, str]], template: str, tokenizer: Tokenizer
) -> list[int]:
    """Return the tokens of a prompt, up to where the answer begins.

    Args:
        messages: "role" and "content" of each; a single one of the user but for the template chat.
        template: one of `PROMPTS`, or "chat".
        tokenizer: the model's.

    Raises:
        UserError: if the chat template does not accept the messages, or there is no token.
    """
    if template == CHAT:
        assert tokenizer.chat is not None  # `choose_template` has looked
        text = tokenizer.chat.render(messages, add_generation_prompt=True)
        (ids,) = tokenizer.encoder.encode([text], continues=False, parse_special=True)
    else:
        prompt = PROMPTS[template](messages[-1]["content"], "")
        is_rendered = template == PLAIN and tokenizer.control.at_start(prompt) is not None
        has_start = bool(tokenizer.start_text) and prompt.startswith(tokenizer.start_text)
        text_of_prompt = EncodableText(
            (Segment(prompt, False),),
            add_start=not (is_rendered and has_start),
            add_end=False,
            parse_special=is_rendered,
        )
        (example,) = tokenizer.encode([text_of_prompt])
        ids = example.input_ids
    if not ids:
        raise UserError("a prompt must have at least one token; got an empty one")
    return ids
