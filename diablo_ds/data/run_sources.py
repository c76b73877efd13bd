"""The data that a run config names: the files of each source, for training and held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diablo_ds.config.data_settings import RAW_SETTINGS
from diablo_ds.config.run import RunConfig
from diablo_ds.data.corpora.sources import (
    SourceFile,
    choose_heldout,
    find_sources,
    name_sources,
    split_name,
)
from diablo_ds.data.dataset_files import is_tokenised
from diablo_ds.data.default_files import with_default_files
from diablo_ds.data.prepare.selection import check_names
from diablo_ds.errors import UserError
from diablo_ds.files.layout import Kind, kind_of

TRAIN, HELDOUT = "train", "heldout"


@dataclass(frozen=True)
class DataSource:
    """One source: a prepared dataset, or raw files."""

    name: str
    """Of a prepared dataset, under which it is mixed; raw files have names of their own."""
    given: str
    """As the user named it."""
    prepared: Path | None = None
    """The folder of the dataset."""
    train: tuple[SourceFile, ...] = ()
    heldout: tuple[SourceFile, ...] = ()
    """Raw files of the source's own held-out part."""
    skipped: tuple[Path, ...] = ()
    """Other files for evaluation, and texts beside rows."""

    @property
    def has_heldout(self) -> bool:
        """Whether it has a held-out part of its own."""
        if self.prepared is not None:
            return (self.prepared / HELDOUT).is_dir()
        return bool(self.heldout)

    def files(self, part: str) -> list[Path]:
        """Return the files of a part, "train" or "heldout"; of that which has it."""
        if self.prepared is None:
            own = self.heldout if part == HELDOUT else self.train
            return [source.path for source in own or self.train]
        folder = self.prepared / part
        return sorted((folder if folder.is_dir() else self.prepared).rglob("*.arrow"))

    def names(self) -> set[str]:
        """Return the names by which a mix can take of it."""
        return {self.name} if self.prepared else {source.name for source in self.train}


def find_train_sources(run_config: RunConfig) -> list[DataSource]:
    """Find what a run trains on, and check the settings that need to know it.

    Raises:
        UserError: if there is no such data, or a setting has no effect on it.
    """
    sources = _find(with_default_files(run_config).data)
    check_names(run_config.amounts(), set().union(*(source.names() for source in sources)))
    _check_raw_settings(run_config, sources)
    return sources


def find_heldout_sources(run_config: RunConfig) -> list[DataSource]:
    """Find the held-out data that the run config names apart; see `find_train_sources`."""
    return _find(with_default_files(run_config).heldout_data)


def data_files(run_config: RunConfig, part: str) -> list[Path]:
    """Return the files that the training ("train") or held-out data ("heldout") come from.

    Raises:
        UserError: if there are none.
    """
    sources = find_train_sources(run_config)
    if part == HELDOUT:
        if named := find_heldout_sources(run_config):
            return [file for source in named for file in source.files(TRAIN)]
        if not run_config.heldout_share:
            sources = [source for source in sources if source.has_heldout]
    return [file for source in sources for file in source.files(part)]


def _find(texts: Sequence[str]) -> list[DataSource]:
    sources = [_find_one(text) for text in texts]
    paths = [path for s in sources for path in (s.prepared, *(f.path for f in s.train)) if path]
    twice = [path for path, number in Counter(p.resolve() for p in paths).items() if number > 1]
    if twice:
        raise UserError(f"data must name each file and folder once; got {twice[0]} twice")
    return sources


def _find_one(text: str) -> DataSource:
    name, given = split_name(text)
    path = Path(given).expanduser()
    kind = kind_of(path)
    if kind in (Kind.RUN, Kind.CHECKPOINT, Kind.ADAPTER):
        raise UserError(
            f"data must be a prepared dataset or raw files; got data={given!r}, {kind.value}"
        )
    if is_tokenised(path):
        return DataSource(name or path.resolve().name, given, prepared=path)
    try:
        found, skipped = find_sources([text])
    except UserError as error:
        raise UserError(
            f"data must be an existing file or folder; got data={given!r}: {error}"
        ) from None
    heldout, rest = choose_heldout(skipped)
    own = (source._replace(name=name or source.name) for source in name_sources(heldout))
    return DataSource(name, given, None, tuple(found), tuple(own), tuple(rest))


def _check_raw_settings(run_config: RunConfig, sources: Sequence[DataSource]) -> None:
    """Raise UserError if a setting for raw text is given where all data are tokenised already."""
    if any(source.prepared is None for source in sources):
        return
    names = (*RAW_SETTINGS, "max_bad_rows")
    values = {setting: getattr(run_config, setting) for setting in names}
    given = [f"{k}={v!r}" for k, v in values.items() if v != getattr(RunConfig, k)]
    if given:
        raise UserError(
            f"{', '.join(names[:-1])} and {names[-1]} have no effect on a prepared dataset; got "
            f"{', '.join(given)}, data={', '.join(run_config.data)}"
        )
