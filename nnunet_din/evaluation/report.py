"""A report of tables, notes and pictures, as Markdown and as one HTML file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame


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
    parts = []
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
    template = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    return template.substitute(title=html.escape(title), body="\n".join(parts))


def _code(text: str) -> str:
    """Turn Markdown's backticks into HTML."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)


def markdown_table(table: DataFrame) -> list[str]:
    """The lines of a table in Markdown; every column but the first is aligned to the right."""

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    ruler = ["---", *["---:"] * (len(table.columns) - 1)]
    return [row(table.columns), row(ruler), *(row(cells) for cells in table.itertuples(index=False))]
