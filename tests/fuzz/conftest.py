"""Effort of the fuzz tests: a few seconds with fixed examples in the suite, or a long search.

For a long search with new examples each time:

    python -m pytest tests/fuzz --hypothesis-profile=long
"""

from __future__ import annotations

import pytest

hypothesis = pytest.importorskip("hypothesis")

_ALWAYS = {
    "deadline": None,  # a slow machine is not a defect
    "database": None,
    "suppress_health_check": list(hypothesis.HealthCheck),
}
hypothesis.settings.register_profile("suite", max_examples=150, derandomize=True, **_ALWAYS)
hypothesis.settings.register_profile("long", max_examples=20_000, **_ALWAYS)
if hypothesis.settings.get_current_profile_name() != "long":
    hypothesis.settings.load_profile("suite")
