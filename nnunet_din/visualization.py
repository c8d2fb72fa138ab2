"""Pictures: slices with the enhanced image beside the original and labels drawn on top, and curves of trainings.

Arrays in, figures out. Matplotlib is imported inside the functions, and figures are made without pyplot, so nothing
here needs a display.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "LABEL_COLORS",
    "LINES",
    "label_color",
    "label_names",
    "largest_slice",
    "panel",
    "save_figure",
    "side_by_side",
    "training_curves",
]

#: Colours for label 1, 2, 3, ... after Okabe and Ito, told apart with any kind of colour vision. Black, their eighth,
#: cannot be seen on a grey image: a deep red takes its place, which is grey with no kind of colour vision.
LABEL_COLORS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00", "#901800")

#: Colour and dashes of curve 1, 2, 3, ...: Okabe and Ito's colours without those that are pale on white, and dashes for
#: print in grey.
LINES = (
    ("#0072B2", "solid"),
    ("#D55E00", (0, (5, 1.5))),
    ("#009E73", (0, (1.2, 1.2))),
    ("#CC79A7", (0, (6, 1.5, 1.2, 1.5))),
    ("#E69F00", (0, (3, 1, 1, 1, 1, 1))),
    ("#56B4E9", (0, (9, 2))),
    ("#000000", (0, (2, 3))),
)

_COLUMNS = {"image": "Image", "enhanced": "Enhanced image", "prediction": "Prediction", "truth": "Ground truth"}
_BOX_COLOR = "#FFE000"

# Sizes of a panel in inches and points.
_WIDTH, _COLUMN, _GAP, _MARGIN = 10.4, 2.6, 0.08, 0.1
_TITLE, _HEADING, _LEGEND = 9.0, 11.0, 10.0
_LINE = 1.4 / 72  # height of a line of text in inches for each point of its size
_TALLEST = 1.5  # of a picture, in widths


def label_color(label: int) -> str:
    """Colour of a label.

    Parameters
    ----------
    label : int
        Label, 1 or more; colours repeat after the eighth label.

    Returns
    -------
    str
        Hexadecimal RGB colour.

    Raises
    ------
    ValueError
        If the label is below 1: background has no colour.
    """
    if label < 1:
        raise ValueError(f"Only labels from 1 on have a colour, got {label}")
    return LABEL_COLORS[(label - 1) % len(LABEL_COLORS)]


def label_names(dataset_json: Mapping[str, Any]) -> dict[int, str]:
    """Names of the values in a predicted label map.

    Parameters
    ----------
    dataset_json : mapping
        Content of nnU-Net's `dataset.json`. Where its labels are regions, nnU-Net writes the values of
        `regions_class_order`.

    Returns
    -------
    dict of int to str
        Without background and ignored voxels.
    """
    names = [name for name in dataset_json["labels"] if name not in ("background", "ignore")]
    order = dataset_json.get("regions_class_order") or [dataset_json["labels"][name] for name in names]
    return dict(zip(order, names, strict=True))


def largest_slice(label: np.ndarray) -> int:
    """Find the slice that shows most of the structures.

    Parameters
    ----------
    label : numpy.ndarray
        Integer label map, shape (Z, H, W); values above 0 are foreground.

    Returns
    -------
    int
        Index along axis 0 of the slice with most foreground pixels, the first of several equal ones; the middle slice
        if there is no foreground.

    Raises
    ------
    ValueError
        If `label` is not three-dimensional.
    """
    label = np.asarray(label)
    if label.ndim != 3:
        raise ValueError(f"Expected a label map of shape (Z, H, W), got {label.shape}")
    counts = (label > 0).sum(axis=(1, 2))
    return int(counts.argmax()) if counts.any() else len(label) // 2


def side_by_side(image: np.ndarray, enhanced: np.ndarray) -> Figure:
    """Show a slice beside its enhanced version.

    Parameters
    ----------
    image : numpy.ndarray
        Original slice, shape (H, W), any intensities; shown from the 0.5th to the 99.5th percentile.
    enhanced : numpy.ndarray
        Enhanced slice, shape (H, W), values in (-1, 1); shown from -1 to 1.

    Returns
    -------
    matplotlib.figure.Figure
        Figure with two axes.

    Raises
    ------
    ValueError
        If the slices are not two-dimensional or differ in shape.
    """
    image, enhanced = _slice(image, "image", color=True), _slice(enhanced, "enhanced", color=True)
    if image.shape != enhanced.shape:
        raise ValueError(f"The slices differ in shape: {image.shape} and {enhanced.shape}")
    return panel([{"image": image, "enhanced": enhanced}])


def panel(rows: Sequence[Any], label_names: Mapping[int, str] | None = None, style: str = "filled") -> Figure:
    """Show slices of several cases, one case a row: image, enhanced image, predictions and ground truth.

    Labels are drawn on top of the image. A column that no row has is left out; a cell that only this row lacks stays
    empty.

    Parameters
    ----------
    rows : sequence of dict or of objects
        One or more rows. Keys (or attributes), each of which may be missing or None:

        - `name` (str): the row's title.
        - `image`: any intensities, shape (H, W), or colours, shape (H, W, 3). Shown from the 0.5th to the 99.5th
          percentile; colours of type uint8 as they are.
        - `enhanced`: values in (-1, 1), shape as `image`.
        - `prediction`, `truth`: integer labels, shape (H, W); 0 is background.
        - `predictions` (mapping of str to array): predictions of several models, a column each, headed by the name. A
          double underscore in a name ends a line of the heading.
        - `boxes` (sequence of (top, left, bottom, right)): frames to draw into all pictures of the row, in pixels; the
          lower bounds are included, the upper ones are not.
        - `aspect` (float): height of a pixel divided by its width, 1 by default.
    label_names : mapping of int to str, optional
        Names of the structures for the legend. By default a label is called "label <number>".
    style : {"filled", "contour"}
        "filled": a transparent colour and an outline. "contour": the outline only.

    Returns
    -------
    matplotlib.figure.Figure
        Figure with one axes per row and column, at most 10.4 inches wide.

    Raises
    ------
    ValueError
        If there is nothing to draw, the style is unknown, or the pictures of a row have no slice's shape or differ in
        shape.
    """
    from matplotlib.figure import Figure

    if style not in ("filled", "contour"):
        raise ValueError(f"The style must be 'filled' or 'contour', not '{style}'")
    cells = [_cells(row) for row in rows]
    columns = _headings(cells)
    if not columns:
        raise ValueError("There is nothing to draw: no row has an image, an enhanced image, a prediction or a truth")
    for number, cell in enumerate(cells):
        shapes = {array.shape[:2] for array in cell.values()}
        if len(shapes) > 1:
            raise ValueError(f"The pictures of row {number} differ in shape: {sorted(shapes)}")
    used = sorted(
        {int(v) for cell in cells for key, array in cell.items() if _is_label(key) for v in np.unique(array) if v > 0}
    )

    # Everything is placed in inches from the top: each row is as high as its picture and its title need.
    width = min(_COLUMN, (_WIDTH - 2 * _MARGIN + _GAP) / len(columns) - _GAP)
    total = 2 * _MARGIN + len(columns) * (width + _GAP) - _GAP
    headings = {key: _heading(heading, width) for key, heading in columns.items()}
    heading_size = min(_HEADING, *(_fitting_size(heading, width, _HEADING) for heading in headings.values()))
    heading_height = heading_size * _LINE * max(heading.count("\n") + 1 for heading in headings.values()) + 0.03
    titles = [_wrapped(_get(row, "name") or "", 0.97 * total - 2 * _MARGIN, _TITLE) for row in rows]
    title_heights = [_TITLE * _LINE * (title.count("\n") + 1) + 0.06 if title else 0.0 for title in titles]
    aspects = [float(_get(row, "aspect") or 1.0) for row in rows]
    heights = [width * _relative_height(cell, aspect) for cell, aspect in zip(cells, aspects, strict=True)]
    names = {value: (label_names or {}).get(value, f"label {value}") for value in used}
    legend_columns, legend_height = _legend_size(list(names.values()), total)
    height = 2 * _MARGIN + heading_height + sum(title_heights) + sum(heights) + _GAP * len(cells) + legend_height

    figure = Figure(figsize=(total, height))
    top = height - _MARGIN - heading_height
    for row, cell, title, title_height, row_height, aspect in zip(
        rows, cells, titles, title_heights, heights, aspects, strict=True
    ):
        bottom = top - title_height - row_height
        for number, key in enumerate(columns):
            left = _MARGIN + number * (width + _GAP)
            ax = figure.add_axes((left / total, bottom / height, width / total, row_height / height))
            ax.set_axis_off()
            if key in cell:
                _draw_cell(ax, cell, key, style, aspect)
                _draw_boxes(ax, _get(row, "boxes") or ())
            if top == height - _MARGIN - heading_height:
                # Above the row's own title, at the same height in all columns.
                ax.annotate(
                    headings[key], (0.5, 1.0), (0, 72 * title_height + 2), xycoords="axes fraction",
                    textcoords="offset points", ha="center", va="bottom", fontsize=heading_size, fontweight="bold",
                )  # fmt: skip
        figure.axes[-len(columns)].set_title(title, loc="left", fontsize=_TITLE, pad=4)
        top = bottom - _GAP
    if used:
        from matplotlib.patches import Patch

        handles = [
            Patch(facecolor=label_color(value), edgecolor="black", linewidth=0.5, label=name)
            for value, name in names.items()
        ]
        figure.legend(handles=handles, loc="lower center", ncols=legend_columns, frameon=False, fontsize=_LEGEND)
    return figure


def training_curves(models: Mapping[str, Sequence[Mapping[str, Any]]], against: str = "epoch") -> Figure:
    """Show how several models were trained: losses, pseudo Dice and learning rate.

    A model with several folds has a thin line for each and a thick one for their mean, over the epochs that all of them
    have.

    Parameters
    ----------
    models : mapping of str to sequence of mappings
        Name of the model -> its folds. Keys of a fold, each with a one-dimensional array: `epoch` (whole numbers,
        ascending), `hours` (of training until the end of the epoch), `train_loss`, `val_loss`, `dice` (moving average
        of the mean foreground Dice, 0 to 1) and `learning_rate`. NaN: not known.
    against : {"epoch", "time"}
        What the horizontal axis shows.

    Returns
    -------
    matplotlib.figure.Figure
        Figure with four axes, 7.2 inches wide.

    Raises
    ------
    ValueError
        If there is no model, a model has no fold, or `against` is unknown.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    if against not in ("epoch", "time"):
        raise ValueError(f"Curves are drawn against 'epoch' or 'time', not '{against}'")
    if not models or not all(models.values()):
        raise ValueError("There is nothing to draw: no model, or a model without folds")
    loss = "loss (not comparable\nbetween trainers)" if len(models) > 1 else "loss"
    plots = {
        "train_loss": ("Training loss", loss),
        "val_loss": ("Validation loss", loss),
        "dice": ("Pseudo Dice on random patches", "mean foreground Dice\n(moving average)"),
        "learning_rate": ("Learning rate", "learning rate"),
    }
    handles = []
    for number, (name, folds) in enumerate(models.items()):
        color, dashes = LINES[number % len(LINES)]
        label = f"{name} (mean of {len(folds)} folds)" if len(folds) > 1 else name
        handles.append(Line2D([], [], color=color, linestyle=dashes, linewidth=1.6, label=label))
    legend_columns, legend_height = _legend_size([handle.get_label() for handle in handles], 7.2, size=9.0, handle=0.75)
    height = 5.3 + legend_height
    figure = Figure(figsize=(7.2, height))
    axes = figure.subplots(2, 2)
    figure.subplots_adjust(
        left=0.115, right=0.97, bottom=(legend_height + 0.5) / height, top=1 - 0.3 / height, wspace=0.34, hspace=0.36
    )
    x = "hours" if against == "time" else "epoch"
    for ax, (key, (title, label)) in zip(axes.flat, plots.items(), strict=True):
        for number, folds in enumerate(models.values()):
            color, dashes = LINES[number % len(LINES)]
            if len(folds) > 1:
                for fold in folds:
                    ax.plot(fold[x], fold[key], color=color, linewidth=0.6, alpha=0.45)
            across, mean = _mean_of_folds(folds, x), _mean_of_folds(folds, key)
            # A line through one point is nothing.
            marker = "o" if len(across) == 1 else None
            ax.plot(across, mean, color=color, linestyle=dashes, linewidth=1.6, marker=marker, markersize=4)
        ax.set_title(title, fontsize=10, fontweight="bold")
        ax.set_ylabel(label, fontsize=9)
        ax.set_xlabel("training time in hours" if against == "time" else "epoch", fontsize=9)
        if against != "time":
            ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        ax.tick_params(labelsize=8)
        ax.grid(color="#DDDDDD", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    rates = np.concatenate([np.asarray(fold["learning_rate"], float) for folds in models.values() for fold in folds])
    if (rates > 0).any():
        # Trainers differ by powers of ten.
        axes[1, 1].set_yscale("log", nonpositive="mask")
    figure.legend(
        handles=handles, loc="lower center", ncols=legend_columns, frameon=False, fontsize=9, handlelength=3.5
    )
    return figure


def save_figure(figure: Figure, path: Path | str, dpi: float = 150) -> Path:
    """Write a figure to a file; the folder is made if needed.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        The figure.
    path : pathlib.Path or str
        File to write; its suffix gives the format, for example `.png` or `.pdf`.
    dpi : float
        Dots per inch, also of the images inside a vector picture.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ValueError
        If matplotlib cannot write the format.
    """
    from matplotlib import rc_context

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Journals refuse matplotlib's default, Type 3 fonts.
    with rc_context({"pdf.fonttype": 42}):
        figure.savefig(path, dpi=dpi, facecolor="white")
    return path


def _get(row: Any, key: str) -> Any:
    return row.get(key) if isinstance(row, Mapping) else getattr(row, key, None)


def _slice(array: Any, name: str, color: bool = False) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim != 2 and not (color and array.ndim == 3 and array.shape[2] == 3):
        shapes = "(H, W) or (H, W, 3)" if color else "(H, W)"
        raise ValueError(f"Expected a slice of shape {shapes} for '{name}', got {array.shape}")
    return array


# Columns are called by the row's key, those of several models by a pair of "predictions" and the model's name.


def _is_label(key: Any) -> bool:
    return key not in ("image", "enhanced")


def _cells(row: Any) -> dict[Any, np.ndarray]:
    """Column -> picture, without the missing ones."""
    cells = {key: _get(row, key) for key in _COLUMNS}
    cells.update({("predictions", name): array for name, array in (_get(row, "predictions") or {}).items()})
    return {
        key: _slice(array, key if isinstance(key, str) else key[1], color=not _is_label(key))
        for key, array in cells.items()
        if array is not None
    }


def _headings(cells: Sequence[Mapping[Any, np.ndarray]]) -> dict[Any, str]:
    """Column -> heading, from left to right; models in the order in which the rows name them."""
    present = dict.fromkeys(key for cell in cells for key in cell)
    models = {key: key[1] for key in present if isinstance(key, tuple)}
    fixed = {key: heading for key, heading in _COLUMNS.items() if key in present}
    truth = {key: fixed.pop(key) for key in ("truth",) if key in fixed}
    return {**fixed, **models, **truth}


def _relative_height(cell: Mapping[Any, np.ndarray], aspect: float) -> float:
    """Height of a row's pictures in widths."""
    for array in cell.values():
        return min(array.shape[0] * aspect / array.shape[1], _TALLEST)
    return 1.0


def _text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width in inches of the widest line of a text."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(weight=weight)
    return max(TextPath((0, 0), line, size=size, prop=font).get_extents().width / 72 for line in text.split("\n"))


def _fitting_size(text: str, width: float, size: float) -> float:
    """Largest size up to `size` in which a bold text is not wider than `width`, but never too small to read."""
    return min(size, max(5.5, size * width / max(_text_width(text, size, "bold"), 1e-6)))


def _wrapped(text: str, width: float, size: float, weight: str = "normal") -> str:
    """Text with line breaks after spaces and underscores where a line would be wider than `width` inches."""
    lines = [""]
    for word in re.findall(r"[^ _]*[ _]*", text):
        if lines[-1] and _text_width((lines[-1] + word).rstrip(), size, weight) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.rstrip() for line in lines)


def _heading(name: str, width: float) -> str:
    """A column's heading with line breaks: at a double underscore, and where a small bold line would be too wide."""
    return "\n".join(_wrapped(part, width, 8.0, "bold") for part in name.split("__"))


def _legend_size(names: Sequence[str], width: float, size: float = _LEGEND, handle: float = 0.45) -> tuple[int, float]:
    """Number of columns and height in inches of a legend; a coloured handle takes `handle` inches beside its name."""
    if not names:
        return 1, 0.0
    entry = max(_text_width(name, size) for name in names) + handle
    rows = -(-len(names) // min(max(int((width - 0.2) / entry), 1), 8))
    # As many columns as these rows need: the last one is not left alone in a row.
    return -(-len(names) // rows), 0.12 + size * 1.55 / 72 * rows


def _draw_cell(ax: Axes, cell: Mapping[Any, np.ndarray], key: Any, style: str, aspect: float) -> None:
    """Draw one picture of a row."""
    array = cell[key]
    options = {"interpolation": "nearest", "aspect": aspect}
    if key == "enhanced":
        ax.imshow((array + 1) / 2 if array.ndim == 3 else array, cmap="gray", vmin=-1, vmax=1, **options)
        return
    background = cell.get("image", np.zeros(array.shape))
    if background.dtype == np.uint8 and background.ndim == 3:
        ax.imshow(background, **options)
    else:
        low, high = np.percentile(background, (0.5, 99.5))
        high = max(high, low + 1e-6)
        if background.ndim == 3:
            ax.imshow(np.clip((background - low) / (high - low), 0, 1), **options)
        else:
            ax.imshow(background, cmap="gray", vmin=low, vmax=high, **options)
    if _is_label(key):
        _draw_labels(ax, array, style, aspect)


def _draw_labels(ax: Axes, label: np.ndarray, style: str, aspect: float) -> None:
    from matplotlib.colors import to_rgba

    values = [int(value) for value in np.unique(label) if value > 0]
    if style == "filled":
        overlay = np.zeros((*label.shape, 4))
        for value in values:
            overlay[label == value] = to_rgba(label_color(value), alpha=0.35)
        ax.imshow(overlay, interpolation="nearest", aspect=aspect)
    for value in values:
        # The frame of zeros closes the outline of a structure that touches the border.
        mask = np.pad(label == value, 1).astype(float)
        y, x = (np.arange(-1, size + 1) for size in label.shape)
        ax.contour(x, y, mask, levels=[0.5], colors=[label_color(value)], linewidths=1.3)
    ax.set_xlim(-0.5, label.shape[1] - 0.5)
    ax.set_ylim(label.shape[0] - 0.5, -0.5)


def _draw_boxes(ax: Axes, boxes: Sequence[Sequence[int]]) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    for top, left, bottom, right in boxes:
        # The dark rim keeps the frame visible on bright tissue and beside a yellow label.
        rim = [withStroke(linewidth=2.6, foreground="black")]
        box = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, path_effects=rim, zorder=5)
        box.set(edgecolor=_BOX_COLOR, linewidth=1.4)
        ax.add_patch(box)


def _mean_of_folds(folds: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """Mean of one quantity over the folds, for the epochs that all folds have."""
    common = sorted(set.intersection(*({int(epoch) for epoch in fold["epoch"]} for fold in folds)))
    values = [np.asarray(fold[key], float)[np.isin(fold["epoch"], common)] for fold in folds]
    return np.mean(values, axis=0)
