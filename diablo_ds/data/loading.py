"""Run config to examples: from a prepared dataset, or from raw files tokenised in memory."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from diablo_ds.config.run import RunConfig
from diablo_ds.data.corpora.encoding import Encoded, Rejected, RowEncoder, count_notes
from diablo_ds.data.corpora.reading import read_rows
from diablo_ds.data.corpora.sources import choose_heldout, find_sources
from diablo_ds.data.dataset_files import is_tokenised
from diablo_ds.data.examples import Examples
from diablo_ds.data.labels import Example
from diablo_ds.data.length_limit import LengthLimit
from diablo_ds.data.prepare.manifest import count_examples, load_manifest
from diablo_ds.data.text.tokenization import Tokenizer
from diablo_ds.data.token_table import TokenTable
from diablo_ds.errors import UserError
from diablo_ds.files.layout import MANIFEST_FILE, Kind, kind_of

logger = logging.getLogger("diablo_ds")

_EVALUATED_PARTS = ("heldout", "test", "validation")
"""Names of the parts of a dataset that a model is judged by, the first that there is."""
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
    name = run_config.data
    if _is_prepared(Path(name)):
        has_part = (Path(name) / "heldout").is_dir()
    else:
        has_part = name != "default" and bool(find_raw(name, "heldout"))
    return _load(name, "heldout", run_config, tokenizer, vocab_size) if has_part else None


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
        own_part = part if name == run_config.data else "train"
        return find_raw(name, own_part) or find_raw(name)
    own = Path(name) / part
    return sorted((own if own.is_dir() else Path(name)).rglob("*.arrow"))


def find_raw(name: str, part: str = "train") -> list[Path]:
    """Return the files of raw data, or of their held-out part, which may have none.

    Raises:
        UserError: if there are no files of raw data.
    """
    try:
        sources, skipped = find_sources([name])
        return choose_heldout(skipped)[0] if part == "heldout" else [s.path for s in sources]
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
        encoder = _encoder(run_config, tokenizer)
        own_part = "train" if name == run_config.heldout_data else part
        files = find_raw(name, own_part)
        if part == "train":
            say_skipped(name, has_heldout=not run_config.heldout_data)
        table, notes = _load_raw(name, files, encoder, vocab_size)
        origin = name if own_part == "train" else ", ".join(map(str, files))
    limit = LengthLimit(run_config.max_length, run_config.overlong, tokenizer.start_ids)
    return replace(Examples.from_table(table, limit, origin), notes=notes)


def load_evaluated(
    run_config: RunConfig, files: Sequence[Path], tokenizer: Tokenizer, vocab_size: int
) -> Examples:
    """Load the examples that a model is judged by, from ``run_config.data``.

    Args:
        run_config: names the data, and the template and limits for them.
        files: the raw files of the data; of no use where they are a prepared dataset.
        tokenizer: the model's tokenizer.
        vocab_size: number of token ids that the model knows.

    Raises:
        UserError: if a file is missing, empty or malformed, or no example remains.
    """
    path = Path(run_config.data)
    notes: dict[str, int] = {}
    if _is_prepared(path):
        _check_no_rendering(run_config, run_config.data)
        part = next((name for name in _EVALUATED_PARTS if (path / name).is_dir()), "train")
        table, origin = _load_prepared(path, part, tokenizer, vocab_size)
    else:
        encoder = _encoder(run_config, tokenizer)
        table, notes = _load_raw(run_config.data, files, encoder, vocab_size)
        origin = ", ".join(map(str, files))
    limit = LengthLimit(run_config.max_length, run_config.overlong, tokenizer.start_ids)
    return replace(Examples.from_table(table, limit, origin), notes=notes)


def _encoder(run_config: RunConfig, tokenizer: Tokenizer) -> RowEncoder:
    return RowEncoder(
        run_config.corpus,
        run_config.template,
        tokenizer,
        run_config.control_tokens,
        columns=run_config.column,
        text_length=0 if run_config.text == "row" else run_config.max_length,
    )


def _is_prepared(path: Path) -> bool:
    """Return whether data are a dataset; raise UserError if a run wrote them."""
    kind = kind_of(path)
    if kind in (Kind.RUN, Kind.CHECKPOINT, Kind.ADAPTER):
        raise UserError(
            f"data must be a prepared dataset or raw files; got data={str(path)!r}, {kind.value}"
        )
    return is_tokenised(path)


def _check_no_rendering(run_config: RunConfig, name: str) -> None:
    """Raise UserError if a setting for raw text is given with data that are tokenised already."""
    names = ("corpus", "column", "text", "template", "control_tokens")
    values = {setting: getattr(run_config, setting) for setting in names}
    given = [f"{k}={v!r}" for k, v in values.items() if v != getattr(RunConfig, k)]
    if given:
        raise UserError(
            "corpus, column, text, template and control_tokens have no effect on a prepared "
            "dataset; got "
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


def say_skipped(name: str, *, has_heldout: bool) -> None:
    """Name the files of a folder of raw data that a run does not read."""
    skipped = find_sources([name])[1]
    for path in choose_heldout(skipped)[1] if has_heldout else skipped:
        logger.info(f"Not read, as it looks like test data or notes: {path}")


def _load_raw(
    name: str, files: Sequence[Path], encoder: RowEncoder, vocab_size: int
) -> tuple[TokenTable, dict[str, int]]:
    """Read and tokenise raw files, of which every row must fit; count their notes too."""
    examples: list[Example] = []
    rows: list[int] = []
    num_rows = 0
    notes: Counter[str] = Counter()
    for path in files:
        results = encoder.encode(list(read_rows(path)))
        notes.update(count_notes(results))
        for result in results:
            accepted = _accept(result, path)
            examples += accepted
            if isinstance(result, Encoded) and result.is_joined:
                rows += range(num_rows, num_rows + len(accepted))
                num_rows += len(accepted)
            else:
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
