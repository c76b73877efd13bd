"""Text of anyone's, as TensorBoard turns it into a page."""

from __future__ import annotations

import html
import re

import pytest

from diablo_ds.files.markdown_text import cell


@pytest.mark.parametrize(
    "text",
    [
        "![x](http://stranger/x.png) [y](http://stranger)",
        "<img src=http://stranger/x.png> <a href=http://stranger>y</a>",
        "&lt;img src=x&gt; &#33;[x](http://stranger)",
        "`![x](http://stranger/x.png)` a | b",
        "[x]: http://stranger\n\n[x] ![x]",
        "<http://stranger>",
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a library in TensorBoard
def test_a_page_loads_and_links_nothing_that_a_text_names(text):
    from tensorboard.plugin_util import markdown_to_safe_html

    page = markdown_to_safe_html(f"| what |\n|---|\n| {cell(text)} |")
    assert set(re.findall("<([a-z]+)", page)) <= {"table", "thead", "tbody", "tr", "th", "td", "br"}
    (shown,) = re.findall("<td>(.*)</td>", page)
    assert html.unescape(shown.replace("<br>", "\n")) == text
