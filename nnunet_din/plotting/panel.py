"""Panels of slices: the enhanced image beside the original, labels drawn on top.

Arrays in, figures out. Matplotlib is imported inside the functions, and figures are made without pyplot, so nothing
here needs a display.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_din.plotting.style import label_color
from nnunet_din.plotting.text import BOLD_LETTER, legend_size, text_height, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["panel", "side_by_side"]

_COLUMNS = {"image": "Image", "enhanced": "Enhanced image", "prediction": "Prediction", "truth": "Ground truth"}
_BOX_COLOR = "#FFE000"

# Sizes of a panel in inches and points.
_WIDTH, _COLUMN, _PAD = 10.4, 2.6, 0.04
_TITLE, _LARGEST_HEADING, _SMALLEST_HEADING, _LEGEND = 9.0, 11.0, 7.0, 10.0
_TALLEST = 1.5  # of a picture, in widths


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
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.patches import Patch

    if style not in ("filled", "contour"):
        raise ValueError(f"The style must be 'filled' or 'contour', not '{style}'")
    rows = [row if isinstance(row, Mapping) else vars(row) for row in rows]
    cells = [_cells(row) for row in rows]
    columns = _headings(cells)
    if not columns:
        raise ValueError("There is nothing to draw: no row has an image, an enhanced image, a prediction or a truth")
    for number, cell in enumerate(cells):
        shapes = {array.shape[:2] for array in cell.values()}
        if len(shapes) > 1:
            raise ValueError(f"The pictures of row {number} differ in shape: {sorted(shapes)}")
    labels = [array for cell in cells for key, array in cell.items() if _is_label(key)]
    used = sorted({int(value) for array in labels for value in np.unique(array) if value > 0})

    width = min(_COLUMN, _WIDTH / len(columns))
    total = width * len(columns)
    headings, heading_size = _fit_headings(list(columns.values()), width - 2 * _PAD)
    titles = [wrapped(row.get("name") or "", total, _TITLE) for row in rows]
    heights = [
        width * _relative_height(cell, row.get("aspect") or 1.0) + text_height(title, _TITLE) + 4 * _PAD
        for row, cell, title in zip(rows, cells, titles, strict=True)
    ]
    heights[0] += max(text_height(text, heading_size) for text in headings)
    names = {value: (label_names or {}).get(value, f"label {value}") for value in used}
    legend_columns, legend_height = legend_size(list(names.values()), total, _LEGEND)
    heights.append(legend_height or _PAD)

    layout = ConstrainedLayoutEngine(w_pad=_PAD, h_pad=_PAD, wspace=0, hspace=0)
    figure = Figure(figsize=(total, sum(heights)), layout=layout)
    *parts, bottom = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, row, cell, title in zip(parts, rows, cells, titles, strict=True):
        if title:
            part.suptitle(title, x=_PAD / total, ha="left", fontsize=_TITLE)
        for ax, key, text in zip(part.subplots(1, len(columns), squeeze=False)[0], columns, headings, strict=True):
            ax.set_axis_off()
            ax.set_anchor("N")  # below the heading, where there is more room than estimated
            if key in cell:
                _draw_cell(ax, cell, key, style, row.get("aspect") or 1.0)
                _draw_boxes(ax, row.get("boxes") or ())
            if part is parts[0]:
                ax.set_title(text, fontsize=heading_size, fontweight="bold")
    if used:
        handles = [
            Patch(facecolor=label_color(value), edgecolor="black", linewidth=0.5, label=name)
            for value, name in names.items()
        ]
        bottom.legend(handles=handles, loc="center", ncols=legend_columns, frameon=False, fontsize=_LEGEND)
    return figure


def _slice(array: Any, name: str, color: bool = False) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim != 2 and not (color and array.ndim == 3 and array.shape[2] == 3):
        shapes = "(H, W) or (H, W, 3)" if color else "(H, W)"
        raise ValueError(f"Expected a slice of shape {shapes} for '{name}', got {array.shape}")
    return array


# Columns are called by the row's key, those of several models by a pair of "predictions" and the model's name.


def _is_label(key: Any) -> bool:
    return key not in ("image", "enhanced")


def _cells(row: Mapping[str, Any]) -> dict[Any, np.ndarray]:
    """Collect the pictures of a row by column, without the missing ones."""
    cells = {key: row.get(key) for key in _COLUMNS}
    cells.update({("predictions", name): array for name, array in (row.get("predictions") or {}).items()})
    return {
        key: _slice(array, key if isinstance(key, str) else key[1], color=not _is_label(key))
        for key, array in cells.items()
        if array is not None
    }


def _headings(cells: Sequence[Mapping[Any, np.ndarray]]) -> dict[Any, str]:
    """Collect the headings by column, from left to right; models stand in the order in which the rows name them."""
    present = dict.fromkeys(key for cell in cells for key in cell)
    models = {key: key[1] for key in present if isinstance(key, tuple)}
    fixed = {key: heading for key, heading in _COLUMNS.items() if key in present}
    truth = {key: fixed.pop(key) for key in ("truth",) if key in fixed}
    return {**fixed, **models, **truth}


def _fit_headings(headings: Sequence[str], width: float) -> tuple[list[str], float]:
    """Headings of columns in lines, which begin at a double underscore or where a line would be too wide, and the size
    of type in which the longest line fits.
    """
    lines = [
        "\n".join(wrapped(part, width, _SMALLEST_HEADING, BOLD_LETTER) for part in text.split("__"))
        for text in headings
    ]
    longest = max(len(line) for text in lines for line in text.split("\n"))
    return lines, float(np.clip(72 * width / (BOLD_LETTER * longest), _SMALLEST_HEADING, _LARGEST_HEADING))


def _relative_height(cell: Mapping[Any, np.ndarray], aspect: float) -> float:
    """Height of a row's pictures in widths."""
    for array in cell.values():
        return min(array.shape[0] * aspect / array.shape[1], _TALLEST)
    return 1.0


def _draw_cell(ax: Axes, cell: Mapping[Any, np.ndarray], key: Any, style: str, aspect: float) -> None:
    """Draw one picture of a row."""
    background = cell[key] if key == "enhanced" else cell.get("image", np.zeros(cell[key].shape))
    if key == "enhanced":
        low, high = -1.0, 1.0
    elif background.dtype == np.uint8 and background.ndim == 3:
        low, high = 0, 255
    else:
        low, high = np.percentile(background, (0.5, 99.5))
    shown = np.clip((background - low) / max(high - low, 1e-6), 0, 1)
    ax.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect=aspect)
    if _is_label(key):
        _draw_labels(ax, cell[key], style, aspect)


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
