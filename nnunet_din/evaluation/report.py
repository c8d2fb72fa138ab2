"""A report of tables, notes and pictures, as Markdown and as one HTML file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { cursor: pointer; }
th[aria-sort=ascending]::after { content: " \\2191"; }
th[aria-sort=descending]::after { content: " \\2193"; }
code { overflow-wrap: anywhere; }
th, td { padding: 0.25rem 0.75rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead { border-top: 2px solid; border-bottom: 1px solid; }
tbody { border-bottom: 2px solid; }
.warning { border-left: 4px solid #D55E00; padding-left: 1rem; }
.note { color: #555; }
img { max-width: 100%; }
"""


#: A click on a heading sorts its table: by the first number of each cell, else by its text; a second one reverses.
_SCRIPT = """
for (const heading of document.querySelectorAll("th")) heading.addEventListener("click", () => {
  const table = heading.closest("table"), column = heading.cellIndex;
  const falling = heading.getAttribute("aria-sort") === "ascending";
  const value = (row) => {
    const text = row.cells[column].textContent.trim(), number = text.replace("< ", "").match(/^[+-]?[\\d.]+/);
    return number ? parseFloat(number[0]) : text === "-" ? Infinity : text;
  };
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    return typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === "number" ? -1 : 1;
  };
  const rows = [...table.tBodies[0].rows].sort((a, b) => (falling ? -1 : 1) * compare(a, b));
  table.tBodies[0].append(...rows);
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
});
"""


@dataclass
class Section:
    """A part of a report.

    Attributes
    ----------
    title : str
        Heading of the section.
    table : pandas.DataFrame or None
        Table whose cells are strings.
    notes : list of str
        Sentences below the table.
    pictures : list of pathlib.Path
        PNG files beside the report.
    warnings : list of str
        Sentences that must not be overlooked, above the table.
    """

    title: str
    table: DataFrame | None = None
    notes: list[str] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """The report as Markdown; pictures are linked by name."""
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        if section.warnings:
            lines += [*(f"- **{warning}**" for warning in section.warnings), ""]
        if section.table is not None:
            lines += [*markdown_table(section.table), ""]
        for note in section.notes:
            lines += [note, ""]
        for picture in section.pictures:
            lines += [f"![{section.title}]({picture.name})", ""]
    return "\n".join(lines)


def to_html(title: str, sections: Sequence[Section]) -> str:
    """The report as one HTML file with the pictures inside."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        if section.warnings:
            items = "".join(f"<li>{html.escape(warning)}</li>" for warning in section.warnings)
            parts.append(f'<ul class="warning">{items}</ul>')
        if section.table is not None:
            parts.append(f'<div class="table">{section.table.to_html(index=False, border=0, escape=True)}</div>')
        parts += [f'<p class="note">{_code(html.escape(note))}</p>' for note in section.notes]
        for picture in section.pictures:
            data = base64.b64encode(picture.read_bytes()).decode()
            parts.append(f'<img alt="{html.escape(section.title)}" src="data:image/png;base64,{data}">')
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    body = "\n".join([*parts, f"<script>{_SCRIPT}</script>"])
    return f'<!doctype html><html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _code(text: str) -> str:
    """Turn Markdown's backticks into HTML."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)


def markdown_table(table: DataFrame) -> list[str]:
    """The lines of a table in Markdown; every column but the first is aligned to the right."""

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    ruler = ["---", *["---:"] * (len(table.columns) - 1)]
    return [row(table.columns), row(ruler), *(row(cells) for cells in table.itertuples(index=False))]
