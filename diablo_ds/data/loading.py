"""Run config to examples: from a prepared dataset, or from raw files tokenised in memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from diablo_ds.config.run import RunConfig
from diablo_ds.data.corpora.encoding import Encoded, Rejected, RowEncoder, count_notes
from diablo_ds.data.corpora.reading import read_rows
from diablo_ds.data.corpora.sources import find_sources
from diablo_ds.data.dataset_files import is_dataset
from diablo_ds.data.examples import Examples
from diablo_ds.data.labels import Example
from diablo_ds.data.length_limit import LengthLimit
from diablo_ds.data.prepare.manifest import count_examples, load_manifest
from diablo_ds.data.text.tokenization import Tokenizer
from diablo_ds.data.token_table import TokenTable
from diablo_ds.errors import UserError
from diablo_ds.files.layout import MANIFEST_FILE, Kind, kind_of

SAMPLES_FOLDER = Path(__file__).parent / "corpora" / "samples"


def load_data(
    run_config: RunConfig, tokenizer: Tokenizer, vocab_size: int
) -> tuple[Examples, Examples | None]:
    """Load the training examples and the held-out ones, as the run config names them.

    Args:
        run_config: names the data, and the template and limits for them.
        tokenizer: the model's tokenizer.
        vocab_size: number of token ids that the model knows.

    Raises:
        UserError: if a file is missing, empty or malformed, or no example remains.
    """
    run_config = _with_default_files(run_config)
    train = _load(run_config.data, "train", run_config, tokenizer, vocab_size)
    if heldout := load_heldout(run_config, tokenizer, vocab_size):
        return train, heldout
    if run_config.heldout_share:
        return train.split(run_config.heldout_share, run_config.seed)
    return train, None


def load_heldout(run_config: RunConfig, tokenizer: Tokenizer, vocab_size: int) -> Examples | None:
    """Load the held-out examples that are stored apart, if there are any; see `load_data`."""
    if run_config.heldout_data:
        return _load(run_config.heldout_data, "heldout", run_config, tokenizer, vocab_size)
    if (Path(run_config.data) / "heldout").is_dir():
        return _load(run_config.data, "heldout", run_config, tokenizer, vocab_size)
    return None


def data_files(run_config: RunConfig, part: str) -> list[Path]:
    """Return the files that the training ("train") or held-out data ("heldout") come from.

    Raises:
        UserError: if there are none.
    """
    run_config = _with_default_files(run_config)
    name = run_config.data
    if part == "heldout" and run_config.heldout_data:
        name = run_config.heldout_data
    if not _is_prepared(Path(name)):
        return find_raw(name)
    own = Path(name) / part
    return sorted((own if own.is_dir() else Path(name)).rglob("*.arrow"))


def find_raw(name: str) -> list[Path]:
    """Return the files of raw data.

    Raises:
        UserError: if there are none.
    """
    try:
        return [source.path for source in find_sources([name])[0]]
    except UserError as error:
        raise UserError(
            f"data must be an existing file or folder; got data={name!r}: {error}"
        ) from None


def unknown_token(token: int, vocab_size: int) -> str:
    """Return the message for a token id that the model does not know."""
    return (
        f"token ids must be below the model's vocabulary size; got {token}, vocab_size={vocab_size}"
    )


def _load(
    name: str, part: str, run_config: RunConfig, tokenizer: Tokenizer, vocab_size: int
) -> Examples:
    notes: dict[str, int] = {}
    if _is_prepared(Path(name)):
        if part == "train":
            _check_no_rendering(run_config, name)
        table, origin = _load_prepared(Path(name), part, tokenizer, vocab_size)
    else:
        encoder = RowEncoder(
            run_config.corpus,
            run_config.template,
            tokenizer,
            run_config.control_tokens,
            columns=run_config.column,
        )
        (table, notes), origin = _load_raw(name, encoder, vocab_size), name
    limit = LengthLimit(run_config.max_length, run_config.overlong, tokenizer.start_ids)
    return replace(Examples.from_table(table, limit, origin), notes=notes)


def _is_prepared(path: Path) -> bool:
    """Return whether data are a dataset; raise UserError if a run wrote them."""
    kind = kind_of(path)
    if kind in (Kind.RUN, Kind.CHECKPOINT, Kind.ADAPTER):
        raise UserError(
            f"data must be a prepared dataset or raw files; got data={str(path)!r}, {kind.value}"
        )
    return is_dataset(path)


def _check_no_rendering(run_config: RunConfig, name: str) -> None:
    """Raise UserError if a setting for raw text is given with data that are tokenised already."""
    names = ("corpus", "column", "template", "control_tokens")
    values = {setting: getattr(run_config, setting) for setting in names}
    given = [f"{k}={v!r}" for k, v in values.items() if v != getattr(RunConfig, k)]
    if given:
        raise UserError(
            "corpus, column, template and control_tokens have no effect on a prepared dataset; got "
            f"{', '.join(given)}, data={name!r}"
        )


def _load_prepared(
    path: Path, part: str, tokenizer: Tokenizer, vocab_size: int
) -> tuple[TokenTable, str]:
    """Open a part of a prepared dataset; return it and its description."""
    manifest = load_manifest(path) if (path / MANIFEST_FILE).is_file() else None
    table = TokenTable.load(path, part)
    if manifest is None:  # of another program
        table.check_tokens(str(path))
        largest_id = table.largest_id()
    else:
        if not tokenizer.reads_as(manifest["tokenizer"]["probe"]):
            raise UserError(
                "prepared dataset must be made with the model's tokenizer; got "
                f"{manifest['tokenizer']['name']} in {path}, which splits text into other tokens"
            )
        described = manifest["parts"].get(part, {"rows": 0, "tokens": 0, "largest_id": 0})
        found = {
            "rows": table.count_source_rows(np.arange(len(table))),
            "examples": len(table),
            "tokens": int(table.lengths().sum()),
        }
        recorded = {**described, "examples": count_examples(described)}
        recorded = {name: recorded[name] for name in found}
        if found != recorded:
            raise UserError(
                f"prepared dataset must match its {MANIFEST_FILE}; got {found} instead of "
                f"{recorded} in {path / part}; prepare it again"
            )
        largest_id = described["largest_id"]
    _check_vocabulary(largest_id, vocab_size, str(path))
    return table, f"{path} ({part})"


def _load_raw(name: str, encoder: RowEncoder, vocab_size: int) -> tuple[TokenTable, dict[str, int]]:
    """Read and tokenise raw files, of which every row must fit; count their notes too."""
    examples: list[Example] = []
    rows: list[int] = []
    num_rows = 0
    notes: Counter[str] = Counter()
    for path in find_raw(name):
        results = encoder.encode(list(read_rows(path)))
        notes.update(count_notes(results))
        for result in results:
            accepted = _accept(result, path)
            examples += accepted
            rows += [num_rows] * len(accepted)
            num_rows += 1
    if not examples:
        raise UserError(f"data must have at least one row; got none in {name}")
    table = TokenTable.from_examples(examples, rows)
    _check_vocabulary(table.largest_id(), vocab_size, name)
    return table, dict(sorted(notes.items()))


def _accept(result: Encoded | Rejected, path: Path) -> tuple[Example, ...]:
    if isinstance(result, Rejected):
        raise UserError(
            f"each row must fit its corpus; got {path}, line {result.line}: {result.reason}"
        )
    return result.examples


def _check_vocabulary(largest_id: int, vocab_size: int, origin: str) -> None:
    if largest_id >= vocab_size:
        raise UserError(
            f"{unknown_token(largest_id, vocab_size)} in {origin}; was it made for another "
            "tokenizer?"
        )


def _with_default_files(run_config: RunConfig) -> RunConfig:
    """Return the run config with the shipped samples in place of the default data."""
    if run_config.data != "default":
        return run_config
    folder = SAMPLES_FOLDER / "gsm8k"
    return replace(
        run_config,
        data=str(folder / "train.jsonl"),
        heldout_data=str(folder / "heldout.jsonl"),
        corpus="math",
    )
