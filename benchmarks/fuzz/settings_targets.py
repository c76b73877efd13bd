"""Run configs, DeepSpeed configs, hostfiles, and what tells a folder's kind."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from benchmarks.fuzz import hostile
from benchmarks.fuzz.target import Target
from benchmarks.fuzz.valid import YAML

_ZERO3 = Path(__file__).parents[2] / "ds_configs" / "zero3.json"


def settings_targets() -> list[Target]:
    """Return the readers of settings."""
    from diablo_ds.config.run import RunConfig
    from diablo_ds.config.run_files import load_run_config, load_settings
    from diablo_ds.files.layout import kind_of
    from diablo_ds.launcher.cluster import read_hostfile
    from diablo_ds.model.architecture import BaseSizes
    from diablo_ds.zero.ds_config import complete_ds_config, load_ds_config

    base = BaseSizes(hidden_size=32, total=10_000, layer=2_000, head=1_000)
    run_config = json.dumps(dataclasses.asdict(RunConfig()), indent=1, default=str).encode()

    def ds_config(place: Path) -> None:
        values = load_ds_config(place / "ds.json")
        given = RunConfig(micro_batch=2, global_batch=8)
        complete_ds_config(values, given, world_size=2, base=base, source="ds.json")

    def one(name: str, content: bytes, read: object, made: list[bytes]) -> Target:
        return Target(name, {name: content}, [name], read, {name: made})  # type: ignore[arg-type]

    hosts = [b"a slots=1\n" * 100_000, b"-oProxyCommand=id slots=1", b"a" * 3_000_000, b"\0"]
    return [
        one("run.json", run_config, lambda p: load_run_config(p / "run.json"), hostile.JSON),
        one("run.yaml", YAML, lambda p: load_settings(p / "run.yaml"), hostile.YAML),
        one("ds.json", _ZERO3.read_bytes(), ds_config, hostile.JSON),
        one("hosts", b"# x\na slots=4\nb slots=4\n", lambda p: read_hostfile(p / "hosts"), hosts),
        one("manifest.json", b'{"files": {}}', kind_of, [*hostile.JSON, *hostile.MANY_VALUES]),
    ]
