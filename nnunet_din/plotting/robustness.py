"""Dice against the severity of corruptions: a data frame in, a figure out."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from nnunet_din.data.names import short_names
from nnunet_din.plotting.curves import LINES
from nnunet_din.plotting.text import legend_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["dice_by_severity"]

#: Most panels in a row, and their size in inches.
_PER_ROW, _WIDTH, _HEIGHT = 4, 1.75, 1.6
_TEXT = 7
_LINE = {"marker": "o", "markersize": 2.5, "linewidth": 1.2}


def dice_by_severity(dice: DataFrame) -> Figure:
    """Draw one panel for each corruption and one line for each model.

    Parameters
    ----------
    dice : pandas.DataFrame
        Mean Dice in 0 to 1, a row for each model and a column for each corruption and severity. The column of severity
        0, of whatever name, is the first point of all lines.

    Returns
    -------
    matplotlib.figure.Figure
        Figure at most 7 inches wide; all panels have the same axes.
    """
    from matplotlib.figure import Figure

    severities = dice.columns.get_level_values("severity")
    clean = dice.loc[:, severities == 0].iloc[:, 0]
    corruptions = list(dict.fromkeys(dice.columns[severities > 0].get_level_values("corruption")))
    columns = min(len(corruptions), _PER_ROW)
    rows, width = ceil(len(corruptions) / columns), max(columns * _WIDTH, 2 * _WIDTH)
    names = short_names(dice.index)
    legend_columns, legend_height = legend_size(list(names.values()), width, _TEXT)
    height = rows * _HEIGHT + 0.3 + legend_height
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax, corruption in zip(axes.flat, corruptions, strict=False):
        bad = dice[corruption]
        for place, (model, name) in enumerate(names.items()):
            color, dashes = LINES[place % len(LINES)]
            values = [100 * clean[model], *(100 * bad.loc[model])]
            ax.plot([0, *bad.columns], values, color=color, linestyle=dashes, label=name, **_LINE)
        ax.set_title(corruption.replace("_", " "), fontsize=_TEXT + 1, pad=3)
        ax.set_xticks([0, *bad.columns])
        ax.tick_params(labelsize=_TEXT, length=2.5, labelbottom=True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="0.85", linewidth=0.5)
    for ax in axes.flat[len(corruptions) :]:
        ax.remove()
    figure.supxlabel("Severity (0: the image as it is)", fontsize=_TEXT + 1)
    for ax in axes[:, 0]:
        ax.set_ylabel("Dice in %", fontsize=_TEXT + 1)
    handles, _ = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside upper center", ncols=legend_columns, frameon=False, fontsize=_TEXT)
    return figure
