"""Parts of a page as HTML text; whatever comes from a file is escaped here."""

from __future__ import annotations

import html
from collections.abc import Collection, Iterable, Sequence

from diablo_ds.reporting.columns import one_line

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 1120px; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2rem 0 .6rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; overflow-wrap: anywhere; }
p.note { color: #555; margin: .3rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .22rem .7rem; border-bottom: 1px solid #e2e2e2; text-align: left;
         vertical-align: top; overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid #888; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; overflow-wrap: normal; }
tbody th { font-weight: 600; white-space: nowrap; }
.wide { overflow-x: auto; }
.fault td { color: #a4000f; font-weight: 600; }
code { font: 13px/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(440px, 100%), 1fr));
          gap: .8rem; }
svg { width: 100%; height: auto; break-inside: avoid; font: 12px system-ui, sans-serif; }
svg .title { font-weight: 600; font-size: 13px; }
svg .grid { stroke: #ddd; fill: none; }
svg .end { text-anchor: end; }
svg .mid { text-anchor: middle; }
svg polyline { stroke-width: 1.6; stroke-linejoin: round; }
ul.legend { break-after: avoid;
            list-style: none; padding: 0; margin: .4rem 0; display: flex; flex-wrap: wrap;
            gap: .2rem 1.4rem; }
svg.swatch { width: 30px; height: 10px; margin-right: .4rem; }
@page { size: A4; margin: 14mm; }
@media print {
  body { font-size: 10.5px; max-width: none; margin: 0; padding: 0; }
  .charts { grid-template-columns: 1fr 1fr; }
  .wide { overflow: visible; }
  th, td { padding: .12rem .35rem; }
  code { font-size: 9px; }
  h2, h3 { break-after: avoid; }
  tr, .legend { break-inside: avoid; }
}
"""


def text(value: object) -> str:
    """Return a text of anyone's for a page: escaped, control characters written out."""
    return html.escape(one_line(str(value)))


def code(value: object) -> str:
    """Return a text as code."""
    return f"<code>{text(value)}</code>"


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Collection[int] = (),
    faults: Collection[int] = (),
) -> str:
    """Return a table.

    Args:
        header: titles, which are escaped; none for a table without.
        rows: cells, which are HTML.
        numbers: columns that are aligned on the right, counted from 0.
        faults: rows that are marked, counted from 0.
    """
    classes = [' class="number"' if i in numbers else "" for i in range(100)]
    lines = ['<div class="wide"><table>']
    if header:
        cells = (f"<th{c}>{text(t)}</th>" for c, t in zip(classes, header, strict=False))
        lines.append(f"<thead><tr>{''.join(cells)}</tr></thead>")
    lines.append("<tbody>")
    for number, row in enumerate(rows):
        mark = ' class="fault"' if number in faults else ""
        cells = (f"<td{c}>{cell}</td>" for c, cell in zip(classes, row, strict=False))
        lines.append(f"<tr{mark}>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</tbody></table></div>"])


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values; the values are HTML, empty ones left out."""
    rows = [f"<tr><th>{text(name)}</th><td>{value}</td></tr>" for name, value in pairs if value]
    return "\n".join(['<div class="wide"><table><tbody>', *rows, "</tbody></table></div>"])


def section(title: str, *parts: str) -> str:
    """Return a section with a heading; empty where it has no part."""
    given = [part for part in parts if part]
    return "\n".join([f"<h2>{text(title)}</h2>", *given]) if given else ""


def page(title: str, note: str, sections: Iterable[str]) -> str:
    """Return the whole page. It may load nothing from anywhere."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f'<h1>{text(title)}</h1>\n<p class="note">{text(note)}</p>',
            *filter(None, sections),
            "</body>\n</html>\n",
        ]
    )
