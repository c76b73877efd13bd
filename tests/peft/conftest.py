"""PEFT and transformers warn of their own deprecations, which are none of ours."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "peft":
            item.add_marker(pytest.mark.filterwarnings("ignore::FutureWarning"))
