"""Pictures of slices: the original image beside the enhanced one, with the labels drawn on top.

Matplotlib is imported inside the functions, and figures are made without pyplot, so nothing here needs a display.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LABEL_COLORS", "label_color", "largest_slice", "panel", "save_figure", "side_by_side"]

#: Colours for label 1, 2, 3, ... after Okabe and Ito, told apart with any kind of colour vision.
LABEL_COLORS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00")

_COLUMNS = {"image": "Image", "enhanced": "Enhanced image", "prediction": "Prediction", "truth": "Ground truth"}


def label_color(label: int) -> str:
    """Colour of a label.

    Parameters
    ----------
    label : int
        Label, 1 or more; colours repeat after the seventh label.

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
    image, enhanced = _slice(image, "image"), _slice(enhanced, "enhanced")
    if image.shape != enhanced.shape:
        raise ValueError(f"The slices differ in shape: {image.shape} and {enhanced.shape}")
    return panel([{"image": image, "enhanced": enhanced}])


def panel(rows: Sequence[Any], label_names: Mapping[int, str] | None = None) -> Figure:
    """Show slices of several cases, one case a row: image, enhanced image, prediction and ground truth.

    Labels are filled with a transparent colour and outlined, on top of the image. A column that no row has is left
    out; a cell that only this row lacks stays empty.

    Parameters
    ----------
    rows : sequence of dict or of objects
        One or more rows. Keys (or attributes): `name` (str, the row's title), `image` (any intensities), `enhanced`
        (values in (-1, 1)), `prediction` and `truth` (integer labels, 0 is background). All pictures of a row are
        two-dimensional with the same shape (H, W). Each key may be missing or None.
    label_names : mapping of int to str, optional
        Names of the structures for the legend. By default a label is called "label <number>".

    Returns
    -------
    matplotlib.figure.Figure
        Figure with one axes per row and column.

    Raises
    ------
    ValueError
        If there is nothing to draw, or the pictures of a row are not two-dimensional or differ in shape.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    cells = [{key: _slice(_get(row, key), key) for key in _COLUMNS} for row in rows]
    columns = [key for key in _COLUMNS if any(row[key] is not None for row in cells)]
    if not columns:
        raise ValueError("There is nothing to draw: no row has an image, an enhanced image, a prediction or a truth")
    for number, row in enumerate(cells):
        shapes = {array.shape for array in row.values() if array is not None}
        if len(shapes) > 1:
            raise ValueError(f"The pictures of row {number} differ in shape: {sorted(shapes)}")

    used = sorted(
        {int(value) for row in cells for key in ("prediction", "truth") if row[key] is not None
         for value in np.unique(row[key]) if value > 0}
    )  # fmt: skip
    legend_height = 0.45 if used else 0.0
    width, height = 2.6 * len(columns), 2.85 * len(cells) + 0.25 + legend_height
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(len(cells), len(columns), squeeze=False)
    figure.subplots_adjust(
        left=0.02, right=0.98, bottom=(legend_height + 0.08) / height, top=1 - 0.5 / height, wspace=0.04, hspace=0.12
    )
    for row, cell, row_axes in zip(rows, cells, axes, strict=True):
        for key, ax in zip(columns, row_axes, strict=True):
            ax.set_axis_off()
            _draw_cell(ax, cell, key)
        name = _get(row, "name")
        if name:
            row_axes[0].set_title(name, loc="left", fontsize=9, pad=3)
    for key, ax in zip(columns, axes[0], strict=True):
        # Above the row's own title, at the same height in all columns.
        ax.annotate(
            _COLUMNS[key], (0.5, 1.0), (0, 16), xycoords="axes fraction", textcoords="offset points",
            ha="center", va="bottom", fontsize=11, fontweight="bold",
        )  # fmt: skip
    if used:
        names = label_names or {}
        handles = [
            Patch(
                facecolor=label_color(value), edgecolor="black", linewidth=0.5, label=names.get(value, f"label {value}")
            )
            for value in used
        ]
        figure.legend(handles=handles, loc="lower center", ncols=min(len(handles), 7), frameon=False, fontsize=10)
    return figure


def save_figure(figure: Figure, path: Path | str) -> Path:
    """Write a figure to a file; the folder is made if needed.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        The figure.
    path : pathlib.Path or str
        File to write; its suffix gives the format, for example `.png` or `.pdf`.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ValueError
        If matplotlib cannot write the format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, facecolor="white")
    return path


def _get(row: Any, key: str) -> Any:
    return row.get(key) if isinstance(row, Mapping) else getattr(row, key, None)


def _slice(array: Any, name: str) -> np.ndarray | None:
    if array is None:
        return None
    array = np.asarray(array)
    if array.ndim != 2:
        raise ValueError(f"Expected a slice of shape (H, W) for '{name}', got {array.shape}")
    return array


def _draw_cell(ax: Axes, cell: Mapping[str, np.ndarray | None], key: str) -> None:
    """Draw one picture of a row; `ax` stays empty if the row does not have it."""
    array = cell[key]
    if array is None:
        return
    if key == "enhanced":
        ax.imshow(array, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        return
    background = cell["image"] if cell["image"] is not None else np.zeros(array.shape)
    low, high = np.percentile(background, (0.5, 99.5))
    ax.imshow(background, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest")
    if key != "image":
        _draw_labels(ax, array)


def _draw_labels(ax: Axes, label: np.ndarray) -> None:
    from matplotlib.colors import to_rgba

    overlay = np.zeros((*label.shape, 4))
    values = [int(value) for value in np.unique(label) if value > 0]
    for value in values:
        overlay[label == value] = to_rgba(label_color(value), alpha=0.35)
    ax.imshow(overlay, interpolation="nearest")
    for value in values:
        # The frame of zeros closes the outline of a structure that touches the border.
        mask = np.pad(label == value, 1).astype(float)
        y, x = (np.arange(-1, size + 1) for size in label.shape)
        ax.contour(x, y, mask, levels=[0.5], colors=[label_color(value)], linewidths=1.3)
    ax.set_xlim(-0.5, label.shape[1] - 0.5)
    ax.set_ylim(label.shape[0] - 0.5, -0.5)
