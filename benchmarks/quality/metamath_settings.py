"""Settings of the MetaMathQA benchmark, and the folder that belongs to them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality import metamath_protocol as protocol
from diablo_ds.config.setting import AUTO
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json, write_json
from diablo_ds.files.layout import RunFolder
from diablo_ds.model.finding import lasting_name

DS_CONFIG = Path(__file__).resolve().parents[2] / "ds_configs" / "zero2.json"
_OF_TRAINING = (
    "model",
    "data",
    "examples",
    "steps",
    "num_blocks",
    "targets",
    "learning_rate",
    "seed",
    "precision",
)
"""Settings that stay once the training has begun; `diablo-ds evaluate` checks its own."""
_RECORD = "settings.json"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the command was told; see its help.

    Raises:
        UserError: if two settings do not go together.
    """

    model: str
    data: str
    test: Path
    output: Path
    examples: int
    steps: int
    num_blocks: str = "64"
    targets: tuple[str, ...] = ()
    learning_rate: str = AUTO
    """A number, or auto for the trainer's rule."""
    limit: int = 0
    ranks: int = 1
    seed: int = 0
    precision: str = "bf16"
    ds_config: Path = DS_CONFIG
    greedy: bool = False
    max_new_tokens: int = protocol.MAX_NEW_TOKENS
    with_base: bool = False
    texts: Path | None = None

    def __post_init__(self) -> None:
        if protocol.GLOBAL_BATCH % self.ranks:
            raise UserError(
                f"ranks must divide the protocol's global batch of {protocol.GLOBAL_BATCH}; got "
                f"ranks={self.ranks}"
            )

    @property
    def data_folder(self) -> Path:
        """The folder of the rows to train on and of the questions, as the commands read them."""
        return self.output / "data"

    @property
    def has_begun(self) -> bool:
        """Whether the training has written its folder."""
        return RunFolder(self.run_folder).run_config.is_file()

    @property
    def run_folder(self) -> Path:
        """The folder of the training."""
        return self.output / "run"

    def recorded(self) -> dict[str, Any]:
        """Return the settings as JSON values, with paths from the root of the file system."""
        values = dataclasses.asdict(self) | {"model": lasting_name(self.model)}
        if Path(self.data).exists():
            values["data"] = Path(self.data)  # otherwise a hub name
        paths = {n: str(v.absolute()) for n, v in values.items() if isinstance(v, Path)}
        recorded: dict[str, Any] = json.loads(json.dumps(values | paths))
        return recorded


def sizes(examples: int | None, steps: int | None) -> tuple[int, int]:
    """Return examples and steps; one that is missing follows from the other.

    Raises:
        UserError: if there is no step, or some examples would never be seen.
    """
    if steps is None:
        count = protocol.STEPS * protocol.GLOBAL_BATCH if examples is None else examples
        steps = count // protocol.GLOBAL_BATCH
    seen = steps * protocol.GLOBAL_BATCH
    if examples is None:
        examples = seen
    if not steps or examples > seen:
        raise UserError(
            f"examples must be seen, {protocol.GLOBAL_BATCH} in a step; got examples={examples} "
            f"and steps={steps}; give --examples {max(seen, protocol.GLOBAL_BATCH)}, or more "
            "--steps"
        )
    return examples, steps


def check_folder(settings: Settings) -> None:
    """Refuse an output folder that holds something else. Writes nothing.

    Raises:
        UserError: if it does, or was begun with other settings.
    """
    folder = settings.output
    if (folder / _RECORD).is_file():
        old, new = read_json(folder / _RECORD), settings.recorded()
        differing = [
            f"{name}={new[name]!r}, recorded {old.get(name)!r}"
            for name in _OF_TRAINING
            if old.get(name) != new[name]
        ]
        if differing and settings.has_begun:
            raise UserError(
                "output must be new, or hold a training with the same settings; got "
                f"{'; '.join(differing)}; choose another --output than {folder}"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"output must be new, empty or a folder of this command; got {folder}")


def record(settings: Settings) -> None:
    """Create the output folder, if there is none, and write the settings down."""
    settings.output.mkdir(parents=True, exist_ok=True)
    write_json(settings.output / _RECORD, settings.recorded())
