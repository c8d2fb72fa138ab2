"""A report of tables, notes and pictures, as Markdown and as one HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { padding: 0.25rem 0.75rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead { border-top: 2px solid; border-bottom: 1px solid; }
tbody { border-bottom: 2px solid; }
.warning { border-left: 4px solid #D55E00; padding-left: 1rem; }
.note { color: #555; }
img { max-width: 100%; }
"""


@dataclass
class Section:
    """A part of a report.

    Attributes
    ----------
    title : str
        Heading.
    table : pandas.DataFrame or None
        Cells are strings.
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
            parts.append(section.table.to_html(index=False, border=0, escape=True))
        parts += [f'<p class="note">{html.escape(note)}</p>' for note in section.notes]
        for picture in section.pictures:
            data = base64.b64encode(picture.read_bytes()).decode()
            parts.append(f'<img alt="{html.escape(section.title)}" src="data:image/png;base64,{data}">')
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def markdown_table(table: DataFrame) -> list[str]:
    """The lines of a table in Markdown; every column but the first is aligned to the right."""

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    ruler = ["---", *["---:"] * (len(table.columns) - 1)]
    return [row(table.columns), row(ruler), *(row(cells) for cells in table.itertuples(index=False))]
