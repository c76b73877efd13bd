"""Data: a prepared dataset or raw files to examples, by index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from diablo_ds.config.choices import AUTO
from diablo_ds.config.run import RunConfig
from diablo_ds.data.corpora.encoding import Encoded, Rejected, RowEncoder, count_notes, count_rows
from diablo_ds.data.corpora.reading import read_rows
from diablo_ds.data.corpora.sources import find_sources
from diablo_ds.data.labels import Example, shorten
from diablo_ds.data.packing import Ints, permutation
from diablo_ds.data.prepare.manifest import count_examples, load_manifest
from diablo_ds.data.text.tokenization import Tokenizer
from diablo_ds.data.token_table import TokenTable
from diablo_ds.errors import UserError
from diablo_ds.files.layout import MANIFEST_FILE, Kind, kind_of

SAMPLES_FOLDER = Path(__file__).parent / "corpora" / "samples"
NO_LIMIT = 1 << 31


@dataclass(frozen=True)
class Examples:
    """A set of examples in a fixed order."""

    table: TokenTable
    indices: Ints
    """Rows of the table."""
    lengths: Ints
    """Tokens of each example in ``indices``, after a cut."""
    source: str
    max_length: int = NO_LIMIT
    overlong: str = "drop"
    num_start: int = 0
    """Start tokens that a cut keeps."""
    num_dropped: int = 0
    num_cut: int = 0
    notes: Mapping[str, int] = field(default_factory=dict)
    """Rows of raw files by what was done with them."""

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        """Return one example, cut to its length."""
        row = self.table[int(self.indices[index])]
        kept = shorten(row, self.max_length, self.overlong, num_start=self.num_start)
        assert kept is not None
        return kept

    def split(self, share: float, seed: int) -> tuple[Examples, Examples]:
        """Split off a random share of rows, at least one, that depends on the seed alone.

        The answers of a conversation stay together, where each is an example of its own.
        """
        names, rows = np.unique(self.table.source_rows(self.indices), return_inverse=True)
        if len(names) < 2:
            raise UserError(
                f"data must have at least 2 rows to hold some out; got {len(names)} in "
                f"{self.source}; name held-out data, or set heldout_share to 0"
            )
        num_heldout = max(1, round(share * len(names)))
        is_heldout = np.isin(rows, permutation(len(names), seed)[:num_heldout])
        heldout = replace(self._subset(is_heldout), notes={})  # the notes are of all rows
        return self._subset(~is_heldout), heldout

    def num_rows(self) -> int:
        """Return the number of rows of the source that the examples came from."""
        return self.table.count_source_rows(self.indices)

    def _subset(self, mask: npt.NDArray[np.bool_]) -> Examples:
        return replace(self, indices=self.indices[mask], lengths=self.lengths[mask])

    def describe(self) -> str:
        """Return counts as a line of text, with what was dropped or cut."""
        num_rows = self.num_rows()
        rows = f" of {num_rows:,} rows" if num_rows < len(self) else ""
        num_tokens = int(self.lengths.sum())
        text = f"{len(self):,} examples{rows}, {num_tokens:,} tokens from {self.source}"
        if self.num_dropped:
            text += f"; {self.num_dropped:,} longer than max_length dropped"
        if self.num_cut:
            text += f"; {self.num_cut:,} longer than max_length cut"
        for note, number in self.notes.items():
            text += f"\n  {count_rows(number, note)}"
        return text


def load_data(
    config: RunConfig, tokenizer: Tokenizer, vocab_size: int
) -> tuple[Examples, Examples | None]:
    """Load the training examples and the held-out ones, as the run config names them.

    Args:
        config: the run config.
        tokenizer: the model's tokenizer.
        vocab_size: number of token ids that the model knows.

    Raises:
        UserError: if a file is missing, empty or malformed, or no example is left.
    """
    config = _with_default_files(config)
    train = _load(config.data, "train", config, tokenizer, vocab_size)
    if heldout := load_heldout(config, tokenizer, vocab_size):
        return train, heldout
    if config.heldout_share:
        return train.split(config.heldout_share, config.seed)
    return train, None


def load_heldout(config: RunConfig, tokenizer: Tokenizer, vocab_size: int) -> Examples | None:
    """Load the held-out examples that have a place of their own, if any; see `load_data`."""
    if config.heldout_data:
        return _load(config.heldout_data, "heldout", config, tokenizer, vocab_size)
    if (Path(config.data) / "heldout").is_dir():
        return _load(config.data, "heldout", config, tokenizer, vocab_size)
    return None


def _load(
    name: str, part: str, config: RunConfig, tokenizer: Tokenizer, vocab_size: int
) -> Examples:
    if _is_prepared(Path(name)):
        rendering = (config.corpus, config.template, config.control_tokens)
        if part == "train" and rendering != ("", AUTO, AUTO):
            raise UserError(
                "corpus, template and control_tokens have no effect on a prepared dataset; got "
                f"corpus={config.corpus!r}, template={config.template!r}, "
                f"control_tokens={config.control_tokens!r}, data={name!r}"
            )
        table, source = _load_prepared(Path(name), part, tokenizer, vocab_size)
        notes: dict[str, int] = {}
    else:
        encoder = RowEncoder(
            config.corpus or "jsonl",
            config.template,
            tokenizer,
            NO_LIMIT,
            "drop",
            config.control_tokens,
        )
        (table, notes), source = _load_raw(name, encoder, vocab_size), name
    examples = _limit_length(
        table, source, config.max_length, config.overlong, num_start=len(tokenizer.start_ids)
    )
    return replace(examples, notes=notes)


def _is_prepared(path: Path) -> bool:
    """Return whether data are a dataset; raise UserError where they are something of a run's."""
    kind = kind_of(path)
    if kind in (Kind.RUN, Kind.CHECKPOINT, Kind.ADAPTER):
        raise UserError(
            f"data must be a prepared dataset or raw files; got data={str(path)!r}, {kind.value}"
        )
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _load_prepared(
    path: Path, part: str, tokenizer: Tokenizer, vocab_size: int
) -> tuple[TokenTable, str]:
    manifest = load_manifest(path) if (path / MANIFEST_FILE).is_file() else None
    table = TokenTable.load(path, part)
    if manifest is None:
        table.check_tokens(str(path))
        largest_id = table.largest_id()
    else:
        if not tokenizer.reads_as(manifest["tokenizer"]["probe"]):
            raise UserError(
                "prepared dataset must be made with the model's tokenizer; got "
                f"{manifest['tokenizer']['name']} in {path}, which reads a text as other tokens"
            )
        described = manifest["parts"].get(part, {"rows": 0, "tokens": 0, "largest_id": 0})
        found = {
            "rows": table.count_source_rows(np.arange(len(table))),
            "examples": len(table),
            "tokens": int(table.lengths().sum()),
        }
        wanted = {**described, "examples": count_examples(described)}
        wanted = {name: wanted[name] for name in found}
        if found != wanted:
            raise UserError(
                f"prepared dataset must be as its {MANIFEST_FILE} says; got {found} instead of "
                f"{wanted} in {path / part}; prepare it again"
            )
        largest_id = described["largest_id"]
    _check_vocabulary(largest_id, vocab_size, str(path))
    return table, f"{path} ({part})"


def _load_raw(name: str, encoder: RowEncoder, vocab_size: int) -> tuple[TokenTable, dict[str, int]]:
    """Read and tokenise raw files; all rows must fit. Returns counts of notes on them too."""
    examples: list[Example] = []
    rows: list[int] = []
    num_rows = 0
    notes: Counter[str] = Counter()
    for source in find_raw(name):
        results = encoder.encode(list(read_rows(source)))
        notes.update(count_notes(results))
        for result in results:
            accepted = _accept(result, source)
            examples += accepted
            rows += [num_rows] * len(accepted)
            num_rows += 1
    if not examples:
        raise UserError(f"data must have at least one row; got none in {name}")
    table = TokenTable.from_examples(examples, rows)
    _check_vocabulary(table.largest_id(), vocab_size, name)
    return table, dict(sorted(notes.items()))


def find_raw(name: str) -> list[Path]:
    """Return the files of raw data.

    Raises:
        UserError: if there is none.
    """
    try:
        return [source.path for source in find_sources([name])[0]]
    except ValueError as error:
        raise UserError(
            f"data must be an existing file or folder; got data={name!r}: {error}"
        ) from None


def data_files(config: RunConfig, part: str) -> list[Path]:
    """Return the files that the training ("train") or held-out data ("heldout") come from.

    Raises:
        UserError: if there is none.
    """
    config = _with_default_files(config)
    name = config.data
    if part == "heldout" and config.heldout_data:
        name = config.heldout_data
    if not _is_prepared(Path(name)):
        return find_raw(name)
    own = Path(name) / part
    return sorted((own if own.is_dir() else Path(name)).rglob("*.arrow"))


def _with_default_files(config: RunConfig) -> RunConfig:
    """Return the config with the shipped samples in place of the default data."""
    if config.data != "default":
        return config
    folder = SAMPLES_FOLDER / "gsm8k"
    return replace(
        config,
        data=str(folder / "train.jsonl"),
        heldout_data=str(folder / "heldout.jsonl"),
        corpus="math",
    )


def _accept(result: Encoded | Rejected, path: Path) -> list[Example]:
    if isinstance(result, Rejected):
        raise UserError(
            f"each row must fit its corpus; got {path}, line {result.line}: {result.reason}"
        )
    return [fitted.example for fitted in result.examples if fitted.example is not None]


def _check_vocabulary(largest_id: int, vocab_size: int, source: str) -> None:
    if largest_id >= vocab_size:
        raise UserError(
            f"{unknown_token(largest_id, vocab_size)} in {source}; was it made for another "
            "tokenizer?"
        )


def unknown_token(token: int, vocab_size: int) -> str:
    """Return what is wrong with a token that the model does not know."""
    return (
        f"token ids must be below the model's vocabulary size; got {token}, vocab_size={vocab_size}"
    )


def _limit_length(
    table: TokenTable, source: str, max_length: int, overlong: str, *, num_start: int
) -> Examples:
    """Apply the policy for examples longer than ``max_length``."""
    lengths = table.lengths()
    too_long = np.flatnonzero(lengths > max_length)
    if len(too_long) and overlong == "error":
        first = int(too_long[0])
        source_row = int(table.source_rows(too_long[:1])[0])
        raise UserError(
            f"each example must fit max_length; got {len(too_long)} longer than "
            f"max_length={max_length} in {source}, the first is of row {source_row + 1} with "
            f"{lengths[first]} tokens; raise max_length, or set overlong to drop, cut-prompt or "
            "cut-completion"
        )
    keep = np.ones(len(lengths), np.bool_)
    for row in too_long if overlong != "drop" else ():
        example = table[int(row)]
        keep[row] = shorten(example, max_length, overlong, num_start=num_start) is not None
    if overlong == "drop":
        keep[too_long] = False
    if not keep.any():
        raise UserError(
            f"data must have at least one example of at most {max_length} tokens; got "
            f"{len(lengths)} examples, {len(too_long)} too long, in {source}"
        )
    num_dropped = int(len(lengths) - keep.sum())
    return Examples(
        table=table,
        indices=np.flatnonzero(keep),
        lengths=np.minimum(lengths[keep], max_length),
        source=source,
        max_length=max_length,
        overlong=overlong,
        num_start=num_start,
        num_dropped=num_dropped,
        num_cut=len(too_long) - num_dropped,
    )
