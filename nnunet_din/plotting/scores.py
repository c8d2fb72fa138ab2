"""Pictures of a comparison: scores by structure, how stable the ranks are, and Dice against cost.

Data frames in, matplotlib figures out, one column (85 mm) or two columns (175 mm) of a paper wide, with type of 7 and
8 points. Matplotlib is imported inside the functions, and figures are made without pyplot, so nothing here needs a
display. A model has the same colour in every picture that is given the models in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from nnunet_din.nnunet.models import short_names
from nnunet_din.plotting.style import LABEL_COLORS, label_color
from nnunet_din.plotting.text import text_height, text_width, wrapped

if TYPE_CHECKING:
    from matplotlib.artist import Artist
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
_FAR_APART = 10  # largest distance in medians: beyond, the axis is logarithmic
_GREY = "0.85"

_COUNTED = "cases that miss the structure, or see it where there is none (in no box)"

# What tells models apart beyond the eighth, when colours repeat.
_HATCHES = ("", "///", "...", "xxx")
_MARKERS = ("o", "s", "^", "D")


def metric_by_structure(cases: DataFrame, metric: str = "Dice", models: Sequence[str] | None = None) -> Figure:
    """Draw the scores of every model in every structure as box plots.

    A box spans the quartiles, its line is the median, and the whiskers reach the last case within 1.5 times the box's
    length. Up to :data:`MOST_DOTS` cases are all shown as dots; of more, only those beyond the whiskers. Cases that
    miss the structure, or see it where there is none, are in no box, whose axis they would flatten: their number stands
    at the bad end of the axis.

    seaborn draws boxes and dots, too; it loads pyplot, which wants a display, and knows nothing of such cases.

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
        One or more rows of structures. HD95 is linear up to 1 mm and logarithmic above where cases differ much.

    Raises
    ------
    ValueError
        If the metric or a model is unknown, or there is nothing to draw.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if metric not in METRICS:
        raise ValueError(f"There is no picture of '{metric}'. Choose one of: {', '.join(METRICS)}.")
    models = _chosen(cases["model"], models)
    drawn = cases[cases["model"].isin(models) & cases[metric].notna()]
    if drawn.empty:
        raise ValueError(f"There is nothing to draw: no case has a value of {metric}.")
    structures = list(dict.fromkeys(cases["structure"]))
    missed = _missed(drawn)
    in_boxes = drawn[~missed]
    scores = {
        key: _FACTORS[metric] * group.to_numpy(float) for key, group in in_boxes.groupby(["structure", "model"])[metric]
    }
    counts = drawn[missed].groupby(["structure", "model"]).size().to_dict()

    rows = ceil(len(structures) * len(models) / 40)
    per_row = ceil(len(structures) / rows)
    rows = ceil(len(structures) / per_row)
    width = _SINGLE if per_row * len(models) <= 12 else _DOUBLE
    figure = Figure(figsize=(width, 1), layout="constrained")
    axes = figure.subplots(rows, 1, sharey=True, squeeze=False)[:, 0]
    height = 0.0
    for ax, first in zip(axes, range(0, len(structures), per_row), strict=True):
        shown = structures[first : first + per_row]
        _draw_boxes(ax, [[scores.get((structure, model)) for model in models] for structure in shown])
        _write_counts(ax, [[counts.get((s, model), 0) for model in models] for s in shown], above=metric == "HD95")
        ax.set_xlim(-0.5, per_row - 0.5)
        ax.set_ylabel(METRICS[metric], fontsize=_LARGE)
        height += 1.8 + _label_ticks(ax, shown, width)
        _style(ax)
    _scale(axes[0], metric, _FACTORS[metric] * (in_boxes if len(in_boxes) else drawn)[metric].to_numpy(float))
    names = short_names(models)
    handles: list[Artist] = [
        Patch(facecolor=color, hatch=hatch, edgecolor="black", linewidth=0.6, label=names[model])
        for model, (color, hatch, _) in zip(models, map(_look, range(len(models))), strict=True)
    ]
    if counts:
        handles.append(Line2D([], [], linestyle="", marker="$n$", color="black", markersize=4, label=_COUNTED))
    figure.set_figheight(height + _legend(figure, handles))
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
        Figure with one axes; the best rank is at the top.

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
    from matplotlib.lines import Line2D

    models = _chosen(ranks.columns, models)
    if not ranks[models].notna().any(axis=None):
        raise ValueError("There is nothing to draw: no model has a rank.")
    names = short_names(models)
    width = _SINGLE if len(models) <= 4 or _fit(names.values(), _SINGLE, len(models)) else _DOUBLE
    figure = Figure(figsize=(width, 1), layout="constrained")
    ax = figure.subplots()
    last = max(len(models), ceil(ranks[models].max(axis=None)))
    plot_height = max(1.6, 0.22 * last)
    # The largest circle, of share 1, fits between its neighbours.
    diameter = 0.9 * 72 * min(_room(width, len(models)) / 72, plot_height / last, 0.32)
    for place, model in enumerate(models):
        values = ranks[model].dropna().to_numpy(float)
        if not len(values):
            continue
        rank, count = np.unique(values, return_counts=True)
        color = label_color(place + 1)
        ax.scatter(
            np.full(len(rank), place), rank, s=diameter**2 * count / len(values), color=color, edgecolor="black",
            linewidth=0.4, zorder=2,
        )  # fmt: skip
        # Ranks that occur, not values between them.
        low, median, high = np.quantile(values, (0.025, 0.5, 0.975), method="inverted_cdf")
        ax.plot((place, place), (low, high), color="black", linewidth=0.8, zorder=3)
        ax.plot(place, median, "x", color="black", markersize=4.5, markeredgewidth=1.1, zorder=4)
    ax.set_xlim(-0.5, len(models) - 0.5)
    ax.set_ylim(last + 0.6, 0.4)
    ax.set_yticks(range(1, last + 1))
    ax.set_ylabel("Rank (1 is best)", fontsize=_LARGE)
    height = plot_height + _label_ticks(ax, [names[model] for model in models], width)
    _style(ax)
    handles = [
        Line2D([], [], marker="o", color=_GREY, markeredgecolor="black", markeredgewidth=0.4, linestyle="",
               markersize=diameter * share**0.5, label=f"{share:.0%}" + " of samples" * (share == 1))
        for share in (0.1, 0.5, 1)
    ]  # fmt: skip
    figure.set_figheight(height + _legend(figure, handles, diameter))
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
        cost are moved side by side. Names stand beside the points, or in a legend if there is no room.

    Raises
    ------
    ValueError
        If the cost is unknown, or no model has both a cost and a Dice.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter
    from matplotlib.transforms import ScaledTranslation

    if cost not in COSTS:
        raise ValueError(f"There is no picture of '{cost}'. Choose one of: {', '.join(COSTS)}.")
    label, unit = COSTS[cost]
    models = list(table["model"])
    names = short_names(models)
    looks = [_look(place) for place in range(len(models))]
    x = table[cost].to_numpy(float) / unit
    mean, low, high = (100 * table[column].to_numpy(float) for column in ("Dice_mean", "Dice_low", "Dice_high"))
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(mean))
    if not len(known):
        raise ValueError(f"There is nothing to draw: no model has both a Dice and a known cost ({cost}).")

    width = _SINGLE if len(known) <= 5 else _DOUBLE
    figure = Figure(figsize=(width, 2.4), layout="constrained")
    ax = figure.subplots()
    shifts = _side_by_side(np.where(np.isfinite(mean), x, np.nan))
    for i in known:
        color, _, marker = looks[i]
        lines = ax.plot((x[i], x[i]), (low[i], high[i]), color="0.3", linewidth=0.9, zorder=2)
        lines += ax.plot(
            x[i], mean[i], marker, color=color, markeredgecolor="black", markeredgewidth=0.6, markersize=6, zorder=3
        )
        for line in lines:
            line.set_transform(ax.transData + ScaledTranslation(shifts[i] / 72, 0, figure.dpi_scale_trans))
    if x[known].max() > 10 * x[known].min():
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if x[known].max() < 1000 * x[known].min() else (1,)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.margins(0.12)
    ax.set_ylim(top=min(ax.get_ylim()[1], 100.5))
    ax.set_xlabel(label, fontsize=_LARGE)
    ax.set_ylabel(METRICS["Dice"], fontsize=_LARGE)
    unknown = [names[model] for i, model in enumerate(models) if i not in known]
    if unknown:
        note = _wrap_points(f"Not shown (unknown cost or Dice): {'; '.join(unknown)}", 72 * width - 12, _SMALL)
        figure.supxlabel(note, fontsize=_SMALL, x=0.02, ha="left")
        figure.set_figheight(figure.get_figheight() + text_height(note, _SMALL))
    _style(ax)
    ax.grid(True, color=_GREY, linewidth=0.5)
    points = [(x[i], mean[i], low[i], high[i], shifts[i]) for i in known]
    figure.draw_without_rendering()  # only then is the room for names known
    if not any(_label_points(ax, points, [names[models[i]] for i in known], limit) for limit in (130, 85)):
        handles = [
            Line2D([], [], marker=looks[i][2], color=looks[i][0], markeredgecolor="black", markeredgewidth=0.6,
                   markersize=6, linestyle="", label=names[models[i]])
            for i in known
        ]  # fmt: skip
        figure.set_figheight(figure.get_figheight() + _legend(figure, handles))
    return figure


def _chosen(known: Iterable[str], models: Sequence[str] | None) -> list[str]:
    """Choose the models to draw."""
    known = list(dict.fromkeys(known))
    if models is None:
        return known
    unknown = [model for model in models if model not in known]
    if unknown:
        raise ValueError(f"There is no model '{unknown[0]}' here. There are: {', '.join(known)}.")
    return list(models)


def _look(place: int) -> tuple[str, str, str]:
    """Colour, hatch and marker of the model at a place, which starts at 0."""
    turn = place // len(LABEL_COLORS)
    return label_color(place + 1), _HATCHES[turn % len(_HATCHES)], _MARKERS[turn % len(_MARKERS)]


def _style(ax: Axes) -> None:
    ax.tick_params(labelsize=_SMALL, width=0.6, length=2.5)
    ax.tick_params(which="minor", width=0.4, length=1.5, labelsize=_SMALL)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_linewidth(0.6)
    ax.grid(axis="y", color=_GREY, linewidth=0.5)
    ax.set_axisbelow(True)


def _draw_boxes(ax: Axes, groups: Sequence[Sequence[np.ndarray | None]]) -> None:
    """Draw a group of boxes for each structure, centred on 0, 1, ..., each model at its own place in it."""
    step = 0.84 / max(2, len(groups[0]))
    for group, values_of_models in enumerate(groups):
        for place, values in enumerate(values_of_models):
            if values is None:
                continue
            position = group + step * (place - (len(values_of_models) - 1) / 2)
            color, hatch, _ = _look(place)
            dots = len(values) <= MOST_DOTS
            ax.boxplot(
                [values], positions=[position], widths=0.82 * step, manage_ticks=False, patch_artist=True,
                showfliers=not dots,
                boxprops={"facecolor": color, "edgecolor": "black", "hatch": hatch, "linewidth": 0.6},
                medianprops={"color": "black", "linewidth": 1.4, "solid_capstyle": "butt"},
                whiskerprops={"linewidth": 0.6}, capprops={"linewidth": 0.6},
                flierprops={
                    "marker": "o", "markersize": 2.4, "markeredgewidth": 0.3, "markerfacecolor": color,
                    "markeredgecolor": "black",
                },
            )  # fmt: skip
            if dots:
                # Multiples of the golden ratio spread any number of dots evenly and without chance.
                shift = (np.arange(1, len(values) + 1) * 0.618034) % 1 - 0.5
                ax.plot(
                    position + 0.55 * step * shift, values, "o", color="black", alpha=0.55, markersize=1.8,
                    markeredgewidth=0, zorder=3,
                )  # fmt: skip
    for border in range(1, len(groups)):
        ax.axvline(border - 0.5, color=_GREY, linewidth=0.5, zorder=0)


def _missed(cases: DataFrame) -> Series:
    """Whether only one of prediction and truth has the structure; False where the table does not say."""
    from pandas import Series

    if not {"truth_empty", "prediction_empty"} <= set(cases.columns):
        return Series(False, cases.index)
    return cases["truth_empty"].astype(bool) ^ cases["prediction_empty"].astype(bool)


def _write_counts(ax: Axes, groups: Sequence[Sequence[int]], above: bool) -> None:
    """Write numbers at the places of the boxes, at the upper or lower end of the axis; 0 is not written."""
    step = 0.84 / max(2, len(groups[0]))
    for group, counts in enumerate(groups):
        for place, count in enumerate(counts):
            if count:
                ax.text(
                    group + step * (place - (len(counts) - 1) / 2), 0.99 if above else 0.01, str(count),
                    transform=ax.get_xaxis_transform(), ha="center", va="top" if above else "bottom", fontsize=_SMALL,
                    fontweight="bold", zorder=4,
                )  # fmt: skip


def _scale(ax: Axes, metric: str, values: np.ndarray) -> None:
    """Set up the axis of a metric, for axes that share it."""
    if metric == "HD95":
        top = max(1.3 * values.max(), 3)
        if top > _FAR_APART * max(np.median(values), 1):
            from matplotlib.ticker import NullFormatter

            ax.set_yscale("symlog", linthresh=1, linscale=0.5)
            steps = (1, 3) if top > 50 else (1, 2, 5)
            ticks = [step * 10**power for power in range(ceil(np.log10(top))) for step in steps]
            ax.set_yticks([0, *(tick for tick in ticks if tick < top)])
            ax.yaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_ylim(-0.1, top)
    else:
        # Nothing is above 100 %; the space keeps the upper line of a box there visible.
        low = min(values.min(), 95)
        ax.set_ylim(low - 0.05 * (100 - low), 100 + 0.02 * (100 - low))


def _wrap_points(text: str, limit: float, size: float) -> str:
    return wrapped(text, limit / 72, size)


def _room(width: float, places: int) -> float:
    """Points between neighbours where a figure `width` inches wide has that many places along its x-axis."""
    return 72 * (width - 0.6) / places


def _fit(labels: Iterable[str], width: float, places: int) -> list[str] | None:
    """Labels in at most three lines that fit between their neighbours; None if there is no room for that."""
    room = _room(width, places) - 4
    wrapped = [_wrap_points(label, room, _SMALL) for label in labels]
    return wrapped if all(72 * text_width(w, _SMALL) <= room and w.count("\n") < 3 for w in wrapped) else None


def _label_ticks(ax: Axes, labels: Sequence[str], width: float) -> float:
    """Write labels under 0, 1, ... of the x-axis, turned if they are too wide; returns their height in inches."""
    places = round(np.ptp(ax.get_xlim()))
    flat = _fit(labels, width, places)
    if flat:
        ax.set_xticks(range(len(labels)), flat)
        return max(text_height(label, _SMALL) for label in flat) + 0.1
    room = _room(width, places) / 72
    # Long lines where there is no room for many. Lines that slant by 40 degrees are closer than those that stand.
    for limit in (90, 140, 300):
        turned = [_wrap_points(label, limit, _SMALL) for label in labels]
        height = max(text_height(label, _SMALL) for label in turned)
        slanted = height <= np.sin(np.radians(40)) * room
        if height <= room:
            break
    ax.set_xticks(range(len(labels)), turned)
    for label in ax.get_xticklabels():
        label.set(ha="right", multialignment="right", rotation_mode="anchor")
        label.set(rotation=40 if slanted else 90, va="top" if slanted else "center")
    length = max(72 * text_width(label, _SMALL) for label in turned) / 72
    return 0.1 + (0.65 * length + 0.77 * height if slanted else length)


def _legend(figure: Figure, handles: Sequence, size: float = _SMALL) -> float:
    """Put a legend, whose symbols are `size` points high, above the axes; returns its height in inches."""
    width = 72 * figure.get_figwidth()
    for handle in handles:
        handle.set_label(_wrap_points(handle.get_label(), width - 40, _SMALL))
    labels = [handle.get_label() for handle in handles]
    widths = [72 * text_width(label, _SMALL) + 21 + size for label in labels]
    columns = len(handles) if sum(widths) < width else max(1, int(width / max(widths)))
    columns = ceil(len(handles) / ceil(len(handles) / columns))
    extra = size / _SMALL - 1
    figure.legend(
        handles=handles, loc="outside upper left", ncols=columns, frameon=False, fontsize=_SMALL, handleheight=1,
        handlelength=1.4 + extra, handletextpad=0.6, columnspacing=1.4, borderaxespad=0.3, borderpad=0.2 + extra / 2,
        labelspacing=0.35 + extra,
    )  # fmt: skip
    line = max(size / 72, *(text_height(label, _SMALL) for label in labels)) + 0.35 * _SMALL / 72
    return line * ceil(len(handles) / columns) + 0.15


def _side_by_side(costs: np.ndarray) -> np.ndarray:
    """How many points (1/72 inch) to the right each model is drawn, so that equal costs do not hide each other."""
    shifts = np.zeros(len(costs))
    for cost in np.unique(costs[np.isfinite(costs)]):
        same = np.flatnonzero(costs == cost)
        shifts[same] = 7 * (np.arange(len(same)) - (len(same) - 1) / 2)
    return shifts


def _label_points(
    ax: Axes, points: Sequence[tuple[float, float, float, float, float]], names: Sequence[str], limit: float
) -> bool:
    """Write names beside the points, given as x, y, low, high and shift to the right.

    Names are broken into lines of `limit` points. Writes none and returns False if there is no room for all.
    """
    dpi = ax.figure.dpi

    def place(x: float, y: float, shift: float) -> np.ndarray:
        return ax.transData.transform((x, y)) * 72 / dpi + (shift, 0)

    frame = np.asarray(ax.bbox.extents) * 72 / dpi
    taken = []
    for x, y, low, high, shift in points:
        center = place(x, y, shift)
        taken.append((*(center - 4), *(center + 4)))
        if np.isfinite(low) and np.isfinite(high):
            taken.append((*(place(x, low, shift) - 1), *(place(x, high, shift) + 1)))
    texts = []
    for (x, y, _, _, shift), name in zip(points, names, strict=True):
        text = _wrap_points(name, limit, _SMALL)
        size = np.array((72 * text_width(text, _SMALL), 72 * text_height(text, _SMALL)))
        center = place(x, y, shift)
        for side, lines in _OFFSETS:
            # The lower left corner of the text, which is to the left of (below) the point if `side` (`lines`) is -1.
            corner = center + (6 * side, lines * 72 * text_height("", _SMALL)) + (np.sign((side, lines)) - 1) / 2 * size
            box = (*corner, *(corner + size))
            inside = box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                texts.append((text, (x, y), corner + size / 2 - center + (shift, 0), abs(lines) > 1))
                break
        else:
            return False
    for text, point, offset, far in texts:
        ax.annotate(
            text, point, tuple(offset), textcoords="offset points", fontsize=_SMALL, ha="center", va="center",
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "shrinkB": 3} if far else None,
        )  # fmt: skip
    return True


#: Where a name may stand, best first: side of the point (1 right, 0 centred, -1 left) and lines above its middle.
_OFFSETS = [(side, lines) for lines in (0, 0.6, -0.6, 1.6, -1.6) for side in (1, -1, 0)]


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
