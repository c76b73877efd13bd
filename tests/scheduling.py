"""Which worker of pytest-xdist runs which tests: a file's share what its fixtures have trained."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker a file at a time, in the order of the folders, and one all of tests/cluster.

    There can be one SLURM. xdist's own `--dist=loadgroup` (3.8) has no effect under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class FileScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "cluster" if "/cluster/" in file else file

    config.option.loadscopereorder = False
    return FileScheduling(config, log)
