"""Numbers as text, tables of differences, and the files of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from nnunet_din.data.files import write_text
from nnunet_din.evaluation.report import Section, to_html, to_markdown


def number(value: float, form: str = ".2f") -> str:
    """Write a number by a format of :func:`format`; a dash for NaN."""
    return "-" if math.isnan(value) else format(value, form)


def percent(value: float, sign: str = "") -> str:
    """Write a fraction in percent; ``+`` as ``sign`` asks for one."""
    return number(100 * value, f"{sign}.2f")


def p_text(p: float) -> str:
    """Write a p-value."""
    return "< 0.001" if p < 0.001 else number(p, ".3f")


def difference_table(
    differences: Mapping[str, pd.DataFrame], headings: Mapping[str, str], factors: Mapping[str, float], measure: str
) -> pd.DataFrame:
    """Tables of paired differences as one of text.

    Parameters
    ----------
    differences
        What :func:`nnunet_din.evaluation.statistics.compare_with_reference` returns, by measure. The second column
        keeps its name.
    headings, factors
        Name of each measure, and the factor from its values to the printed ones.
    measure
        Heading of the column of measures.

    Returns
    -------
    pandas.DataFrame
        A row for each row of each table.
    """
    rows = []
    for name, table in differences.items():
        for _, values in table.iterrows():
            low, mean, high = (number(factors[name] * values[key], "+.2f") for key in ("low", "difference", "high"))
            rows.append(
                {
                    "model": values["model"],
                    measure: headings[name],
                    table.columns[1]: values.iloc[1],
                    "difference [95 %]": f"{mean} [{low}, {high}]",
                    "p": p_text(values["p"]),
                    "p, Holm": p_text(values["p_holm"]),
                    "better / equal / worse": f"{values['better']} / {values['equal']} / {values['worse']}",
                }
            )
    return pd.DataFrame(rows)


def write_report(
    folder: Path, name: str, title: str, sections: Sequence[Section], tables: Mapping[str, pd.DataFrame]
) -> list[Path]:
    """Write a report as Markdown and HTML, and its tables with every number in full.

    Parameters
    ----------
    folder
        Folder of the files, with the pictures of the sections.
    name
        Name of the report's files, without their endings.
    title, sections
        See :func:`nnunet_din.evaluation.report.to_html`.
    tables
        Tables by the names of their CSV files, without the ending.

    Returns
    -------
    list of pathlib.Path
        The files.
    """
    contents = {f"{name}.md": to_markdown(title, sections), f"{name}.html": to_html(title, sections)}
    contents |= {f"{stem}.csv": table.to_csv(index=False) for stem, table in tables.items()}
    return [write_text(folder / file, content) for file, content in contents.items()]
