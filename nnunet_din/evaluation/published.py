"""What the paper prints: the rows of its tables of results, to be shown beside measured ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

__all__ = ["PUBLISHED", "published_rows"]

#: Data sets of which the paper prints results: Tables 1, 2 and 13.
PUBLISHED = ("synapse", "acdc", "clinicdb", "isic18")


def published_rows(dataset: str) -> pandas.DataFrame:
    """Results of all methods on a data set, as the paper prints them.

    Methods keep the paper's order and spelling (but for one misprint). The numbers are from the paper's own test sets
    and, for DIN, from slices resized to 224 x 224: beside a cross-validation they give an idea and no more.

    Parameters
    ----------
    dataset : str
        A name of :data:`PUBLISHED`.

    Returns
    -------
    pandas.DataFrame
        One row per method. Columns: `method`; `source` (table of the paper and number of the method's reference in
        it, as "Table 1 [6]"; the paper's own method has none); `Dice`, the mean over the structures, in percent;
        `HD95`, to which the paper gives no unit; the Dice of each structure in percent, under the paper's name for
        it (none where there is one structure only). NaN where nothing is printed.

    Raises
    ------
    ValueError
        If the paper has no results for the data set.

    References
    ----------
    J. Noh, W. Jeon, J. Park, Dual Interaction Network with Cross-Image Attention for Medical Image Segmentation,
    Pattern Recognition Letters, 2025: Tables 1, 2 and 13.
    """
    import pandas

    if dataset not in PUBLISHED:
        raise ValueError(f"The paper has no results on '{dataset}'. It has: {', '.join(PUBLISHED)}.")
    table = pandas.read_csv(Path(__file__).with_suffix(".csv"))
    rows = table[table.pop("dataset") == dataset].reset_index(drop=True)
    structures = [column for column in rows.columns[4:] if rows[column].notna().any()]
    return rows[[*rows.columns[:4], *structures]]
