"""Whether base models have the targets and block counts of several runs, before one of them starts.

`python -m diablo_ds.training.checking` reads the runs from standard input: a JSON list of names and
run configs. It needs torch, which a launcher does without.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import parse_run_config
from diablo_ds.config.starts import BY_COMMAND_ALONE
from diablo_ds.errors import UserError
from diablo_ds.ranks.exit_codes import EXIT_USER_ERROR

MODULE = "diablo_ds.training.checking"


def runs_as_json(runs: Iterable[tuple[str, RunConfig]]) -> str:
    """Return runs as this module's program reads them."""
    values = [(name, dataclasses.asdict(run_config)) for name, run_config in runs]
    for _, settings in values:
        for name in BY_COMMAND_ALONE:  # no file may give them; the environment holds them
            del settings[name]
    return json.dumps(values)


def check_targets(runs: Iterable[tuple[str, RunConfig]]) -> None:
    """Make sure that each run's targets exist in its base model, and its blocks divide them.

    A run that starts from an adapter has that one's, and is left to its own start.

    Args:
        runs: names and run configs.

    Raises:
        UserError: if one has no model, target or block count; names the run.
    """
    from diablo_ds.model.base import Base, read_base
    from diablo_ds.model.deltas import choose_num_blocks
    from diablo_ds.model.finding import find_model

    bases: dict[Path, Base] = {}
    for name, run_config in runs:
        try:
            folder = find_model(run_config.model, run_config.cache_folder)
            if folder not in bases:
                bases[folder] = read_base(folder)
            if not run_config.init_adapter:
                choose_num_blocks(bases[folder].shapes, run_config)
        except UserError as error:
            raise UserError(f"run {name} of the sweep: {error}") from None


def main() -> None:
    """Check the runs on standard input; print what is wrong, and exit with `EXIT_USER_ERROR`."""
    source = Path("/dev/stdin")
    try:
        check_targets(
            (str(name), parse_run_config(values, source)) for name, values in json.load(sys.stdin)
        )
    except UserError as error:
        sys.stdout.write(f"{error}\n")
        sys.exit(EXIT_USER_ERROR)


if __name__ == "__main__":
    main()
