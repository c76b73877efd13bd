from __future__ import annotations

from pathlib import Path

from diablo_ds.cli.options_page import options_page

PAGE = Path(__file__).parents[3] / "docs" / "options.md"


def test_the_page_of_options_is_current():
    assert PAGE.read_text() == options_page(), (
        "run python -m diablo_ds.cli.options_page > docs/options.md"
    )
