"""Pictures of a comparison: scores by structure, how stable the ranks are, and Dice against cost.

Data frames in, matplotlib figures out, one column (85 mm) or two columns (175 mm) of a paper wide, with type of 7 and
8 points. Matplotlib is imported inside the functions, and figures are made without pyplot, so nothing here needs a
display. A model has the same colour in every picture that is given the models in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nnunet_din.data.names import short_names
from nnunet_din.plotting.style import LABEL_COLORS, label_color
from nnunet_din.plotting.text import legend_size, text_height, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame, Series

__all__ = ["COSTS", "METRICS", "dice_against_cost", "metric_by_structure", "rank_stability"]

#: Label of the axis of each metric.
METRICS = {
    "Dice": "Dice in % (higher is better)",
    "HD95": "HD95 in mm (lower is better)",
    "NSD": "NSD in % (higher is better)",
}
_FACTORS = {"Dice": 100, "HD95": 1, "NSD": 100}

#: Label of the axis of each cost, and the number its values are divided by for it.
COSTS = {
    "multiply_adds": ("Multiply-adds per image in billions", 1e9),
    "seconds_per_epoch": ("Seconds per epoch", 1),
    "parameters": ("Parameters in millions", 1e6),
}

#: Boxes with no more cases than this show each of them as a dot.
MOST_DOTS = 60

_SINGLE, _DOUBLE = 85 / 25.4, 175 / 25.4  # widths in inches
_LARGE, _SMALL = 8, 7  # type in points
_NAME = 1.65  # inches for the name of a model beside an axis
_LINE = 0.24  # least height in inches of a model's line
_PER_ROW = 4  # panels
_FAR_APART = 10  # largest distance in medians: beyond, the axis is logarithmic
_GREY = "0.85"
_COUNTED = "Bold: number of cases that miss the structure, or see it where there is none (in no box)"
_MARKERS = ("o", "s", "^", "D")  # tell models apart beyond the eighth, when colours repeat


def metric_by_structure(cases: DataFrame, metric: str = "Dice", models: Sequence[str] | None = None) -> Figure:
    """Draw the scores of every model in every structure as box plots.

    A box spans the quartiles, its line is the median, and the whiskers reach the last case within 1.5 times the box's
    length. Up to :data:`MOST_DOTS` cases are all shown as dots; of more, only those beyond the whiskers. Cases that
    miss the structure, or see it where there is none, are in no box, whose axis they would flatten: their number stands
    at the bad end of the axis.

    Parameters
    ----------
    cases : pandas.DataFrame
        One row per model, case and structure with columns `model`, `structure` and `metric`, and perhaps `truth_empty`
        and `prediction_empty`. Dice and NSD are in 0..1, HD95 in mm. NaN (truth and prediction are empty) does not
        count.
    metric : str
        A name of :data:`METRICS`.
    models : sequence of str, optional
        Models to draw, in this order; by default all, in the order of their first rows.

    Returns
    -------
    matplotlib.figure.Figure
        One axes for each structure, in rows of four; all have the same axes, with a model in each line. HD95 is linear
        up to 1 mm and logarithmic above where cases differ much.

    Raises
    ------
    ValueError
        If the metric or a model is unknown, or there is nothing to draw.
    """
    from matplotlib.figure import Figure

    if metric not in METRICS:
        raise ValueError(f"There is no picture of '{metric}'. Choose one of: {', '.join(METRICS)}.")
    models = _chosen(cases["model"], models)
    structures = list(dict.fromkeys(cases["structure"]))
    drawn = cases[cases["model"].isin(models) & cases[metric].notna()]
    if drawn.empty:
        raise ValueError(f"There is nothing to draw: no case has a value of {metric}.")
    missed = _missed(drawn)
    in_boxes = drawn[~missed].groupby(["structure", "model"])[metric]
    scores = {key: _FACTORS[metric] * values.to_numpy(float) for key, values in in_boxes}
    counts = drawn[missed].groupby(["structure", "model"]).size().to_dict()

    columns = min(len(structures), _PER_ROW)
    rows = ceil(len(structures) / columns)
    width = _SINGLE if columns == 1 else _DOUBLE
    note = wrapped(_COUNTED, width, _SMALL) if missed.any() else ""
    names, line = _names_beside(models)
    height = 0.35 + text_height(note, _SMALL) + rows * (0.55 + line * max(len(models), 2))
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax, structure in zip(axes.flat, structures, strict=False):
        for place, model in enumerate(models):
            if (structure, model) in scores:
                _draw_box(ax, place, scores[structure, model])
            if (structure, model) in counts:
                _write_count(ax, place, counts[structure, model], at_right=metric == "HD95")
        ax.set_title(wrapped(structure, (width - _NAME) / columns, _LARGE), fontsize=_LARGE)
        _style(ax)
    for ax in axes.flat[len(structures) :]:
        ax.remove()
    _label_lines(axes[0, 0], names)
    _scale(axes[0, 0], metric, np.concatenate([*scores.values()]) if scores else _FACTORS[metric] * drawn[metric])
    figure.supxlabel("\n".join(filter(None, (METRICS[metric], note))), fontsize=_SMALL)
    return figure


def rank_stability(ranks: DataFrame, models: Sequence[str] | None = None) -> Figure:
    """Draw how often each model has each rank when the cases are drawn anew.

    The area of a circle is the share of the bootstrap samples in which the model has that rank. The cross is the
    median rank, the line the interval of 95 % of the samples.

    Parameters
    ----------
    ranks : pandas.DataFrame
        One row per bootstrap sample, one column per model; 1 is the best rank, ties may share a mean rank. NaN does
        not count.
    models : sequence of str, optional
        Models to draw, in this order; by default all columns.

    Returns
    -------
    matplotlib.figure.Figure
        Figure with one axes, with a model in each line; the best rank is at the left.

    Raises
    ------
    ValueError
        If a model is unknown, or there is nothing to draw.

    References
    ----------
    M. Wiesenfarth et al., Methods and open-source toolkit for analyzing and visualizing challenge results, Scientific
    Reports 11, 2021: the blob plot.
    """
    from matplotlib.figure import Figure

    models = _chosen(ranks.columns, models)
    if not ranks[models].notna().any(axis=None):
        raise ValueError("There is nothing to draw: no model has a rank.")
    last = max(len(models), ceil(ranks[models].max(axis=None)))
    width = _SINGLE if last <= 4 else _DOUBLE
    names, line = _names_beside(models)
    figure = Figure(figsize=(width, 0.9 + line * max(len(models), 2)), layout="constrained")
    ax = figure.subplots()
    # The largest circle, of share 1, fits between its neighbours.
    area = (72 * min(0.26, 0.8 * (width - _NAME) / last)) ** 2
    rim: dict[str, Any] = {"edgecolor": "black", "linewidth": 0.4}
    for place, model in enumerate(models):
        shares = ranks[model].value_counts(normalize=True)
        ax.scatter(shares.index, [place] * len(shares), s=area * shares, color=label_color(place + 1), **rim)
    # Ranks that occur, not values between them.
    low, median, high = ranks[models].quantile([0.025, 0.5, 0.975], interpolation="nearest").to_numpy()
    places = range(len(models))
    ax.hlines(places, low, high, color="black", linewidth=0.8)
    ax.plot(median, places, "x", color="black", markersize=4.5, markeredgewidth=1.1)
    ax.set_xlim(0.4, last + 0.6)
    ax.set_xticks(range(1, last + 1))
    ax.set_xlabel("Rank (1 is best)", fontsize=_LARGE)
    _label_lines(ax, names)
    _style(ax)
    shown = {0.1: "10 %", 0.5: "50 %", 1: "100 % of samples"}
    handles = [ax.scatter([], [], s=area * share, color=_GREY, label=label, **rim) for share, label in shown.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=_SMALL)
    return figure


def dice_against_cost(table: DataFrame, cost: str = "multiply_adds") -> Figure:
    """Draw the Dice of every model, with its interval, against what the model costs.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per model with columns `model`, `Dice_mean`, `Dice_low` and `Dice_high` (mean and 95 % interval,
        0..1; an unknown interval is NaN) and `cost`. Models without a cost or a Dice are named below the axes.
    cost : str
        A name of :data:`COSTS`: multiply-adds per image, seconds per epoch, or number of parameters.

    Returns
    -------
    matplotlib.figure.Figure
        Figure with one axes, logarithmic in cost where costs differ by more than a factor of ten. Points of equal
        cost are moved side by side.

    Raises
    ------
    ValueError
        If the cost is unknown, or no model has both a cost and a Dice.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter
    from matplotlib.transforms import ScaledTranslation

    if cost not in COSTS:
        raise ValueError(f"There is no picture of '{cost}'. Choose one of: {', '.join(COSTS)}.")
    label, unit = COSTS[cost]
    short = short_names(table["model"])
    table = table.assign(name=table["model"].map(short), x=table[cost].astype(float) / unit)
    table["look"] = range(len(table))
    known = table[["x", "Dice_mean"]].notna().all(axis=1)
    if not known.any():
        raise ValueError(f"There is nothing to draw: no model has both a Dice and a known cost ({cost}).")
    unknown, table = table[~known], table[known]
    # Points of equal cost do not hide each other.
    equal = table.groupby("x")["x"]
    table = table.assign(shift=7 * (equal.cumcount() - (equal.transform("size") - 1) / 2))

    width = _SINGLE if len(table) <= 5 else _DOUBLE
    note = f"Not shown (unknown cost or Dice): {'; '.join(unknown['name'])}" if len(unknown) else ""
    note = wrapped(note, width, _SMALL)
    columns, legend_height = legend_size(list(table["name"]), width, _SMALL, handle=0.3)
    figure = Figure(figsize=(width, 2.3 + legend_height + text_height(note, _SMALL)), layout="constrained")
    ax = figure.subplots()
    for model in table.itertuples():
        mean = 100 * model.Dice_mean
        errors = [[mean - 100 * model.Dice_low], [100 * model.Dice_high - mean]]
        moved = ax.transData + ScaledTranslation(model.shift / 72, 0, figure.dpi_scale_trans)
        drawn = ax.errorbar(
            model.x, mean, errors, label=model.name, marker=_marker(model.look), linestyle="",
            markersize=6, color=label_color(model.look + 1), markeredgecolor="black", markeredgewidth=0.6,
            ecolor="0.3", elinewidth=0.9,
        )  # fmt: skip
        for part in drawn.get_children():
            part.set_transform(moved)
    if table["x"].max() > 10 * table["x"].min():
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if table["x"].max() < 1000 * table["x"].min() else (1,)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.margins(0.12)
    ax.set_xlabel(label, fontsize=_LARGE)
    ax.set_ylabel(METRICS["Dice"], fontsize=_LARGE)
    figure.supxlabel(note, fontsize=_SMALL, x=0.02, ha="left")
    _style(ax, "both")
    figure.legend(loc="outside upper left", ncols=columns, frameon=False, fontsize=_SMALL)
    return figure


def _chosen(known: Iterable[str], models: Sequence[str] | None) -> list[str]:
    """Choose the models to draw."""
    known = list(dict.fromkeys(known))
    unknown = [model for model in models or () if model not in known]
    if unknown:
        raise ValueError(f"There is no model '{unknown[0]}' here. There are: {', '.join(known)}.")
    return known if models is None else list(models)


def _marker(place: int) -> str:
    return _MARKERS[place // len(LABEL_COLORS) % len(_MARKERS)]


def _style(ax: Axes, grid: Literal["x", "both"] = "x") -> None:
    ax.tick_params(labelsize=_SMALL, width=0.6, length=2.5, labelbottom=True)
    ax.tick_params(which="minor", width=0.4, length=1.5)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_linewidth(0.6)
    ax.grid(axis=grid, color=_GREY, linewidth=0.5)
    ax.set_axisbelow(True)


def _names_beside(models: Sequence[str]) -> tuple[list[str], float]:
    """Names of models for the y-axis, and the height in inches that each needs there."""
    names = [wrapped(name, _NAME, _SMALL) for name in short_names(models).values()]
    return names, max(_LINE, *(text_height(name, _SMALL) + 0.04 for name in names))


def _label_lines(ax: Axes, names: Sequence[str]) -> None:
    """Write names beside 0, 1, ... of the y-axis, the first at the top."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)


def _draw_box(ax: Axes, place: int, values: np.ndarray) -> None:
    """Draw the box of a model in its line, and its cases where they are not too many."""
    dots = len(values) <= MOST_DOTS
    color = label_color(place + 1)
    ax.boxplot(
        [values], positions=[place], widths=0.7, orientation="horizontal", manage_ticks=False, patch_artist=True,
        showfliers=not dots, boxprops={"facecolor": color, "linewidth": 0.6}, whiskerprops={"linewidth": 0.6},
        capprops={"linewidth": 0.6}, medianprops={"color": "black", "linewidth": 1.4, "solid_capstyle": "butt"},
        flierprops={"marker": "o", "markersize": 2.4, "markeredgewidth": 0.3, "markerfacecolor": color},
    )  # fmt: skip
    if dots:
        # Multiples of the golden ratio spread any number of dots evenly and without chance.
        shift = (np.arange(1, len(values) + 1) * 0.618034) % 1 - 0.5
        ax.plot(values, place + 0.5 * shift, "o", color="black", alpha=0.55, markersize=1.8, markeredgewidth=0)


def _write_count(ax: Axes, place: int, count: int, at_right: bool) -> None:
    """Write a number at an end of a model's line."""
    x, side = (0.99, "right") if at_right else (0.01, "left")
    text = ax.text(x, place, str(count), transform=ax.get_yaxis_transform(), ha=side, va="center", zorder=4)
    text.set(fontsize=_SMALL, fontweight="bold")


def _missed(cases: DataFrame) -> Series:
    """Whether only one of prediction and truth has the structure; False where the table does not say."""
    from pandas import Series

    if not {"truth_empty", "prediction_empty"} <= set(cases.columns):
        return Series(False, cases.index)
    return cases["truth_empty"].astype(bool) ^ cases["prediction_empty"].astype(bool)


def _scale(ax: Axes, metric: str, values: np.ndarray) -> None:
    """Set up the axis of a metric, for axes that share it."""
    if metric == "HD95":
        top = max(1.1 * values.max(), 3)
        if top > _FAR_APART * max(np.median(values), 1):
            ax.set_xscale("symlog", linthresh=1, linscale=0.5)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_xlim(-0.03 * min(top, 3), top)
    else:
        # Equal scores get an axis of five points.
        low = min(values.min(), 95)
        high = max(values.max(), low + 5)
        ax.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
