"""Planners of tiny models."""

from __future__ import annotations

import pytest

from diablo_ds.planning.hardware import Assumptions
from diablo_ds.planning.plan import Planner
from tests.tiny import FAMILIES
from tests.unit.planning.clusters import RUN


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen2", "gpt_neox"])
def planner(request):
    return Planner(FAMILIES[request.param], RUN, Assumptions())


@pytest.fixture(scope="module")
def llama():
    return Planner(FAMILIES["llama"], RUN, Assumptions())
