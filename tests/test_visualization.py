"""Panels of slices and curves of trainings: the right picture, the right colours in the right place."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from nnunet_din.data import files
from nnunet_din.nnunet.labels import label_names
from nnunet_din.plotting.curves import LINES, training_curves
from nnunet_din.plotting.panel import panel, side_by_side
from nnunet_din.plotting.selection import largest_slice
from nnunet_din.plotting.style import LABEL_COLORS, label_color, save_figure


@pytest.fixture
def row():
    """One complete row: a square of label 1 beside a square of label 3."""
    label = np.zeros((20, 24), dtype=np.uint8)
    label[4:12, 4:12] = 1
    label[4:12, 14:22] = 3
    image = np.linspace(0, 500, label.size).reshape(label.shape)
    return {"name": "case_000", "image": image, "enhanced": image / 251 - 1, "prediction": label, "truth": label}


def headings(figure):
    """Headings of the columns."""
    return [ax.get_title() for ax in figure.axes if ax.get_title()]


def test_largest_slice_is_the_one_with_most_foreground():
    """Fails if labels are summed by value, so that a few voxels of a high label outweigh many of a low one; if an empty
    label map gives the first slice, which rarely shows anything; or if the rows of a slice are taken for slices.
    """
    label = np.zeros((7, 8, 8), dtype=np.uint8)
    assert largest_slice(label) == 3
    label[1, :2, :2] = 3
    label[5, :3, :3] = 1
    assert largest_slice(label) == 5
    with pytest.raises(ValueError, match=r"\(Z, H, W\)"):
        largest_slice(label[0])


def test_side_by_side_has_two_pictures(row):
    """Fails if a picture is missing or the enhanced image is not shown on its whole range from -1 to 1."""
    figure = side_by_side(row["image"], row["enhanced"])
    assert headings(figure) == ["Image", "Enhanced image"]
    assert figure.axes[1].images[0].get_clim() == (0, 1)
    np.testing.assert_allclose(figure.axes[1].images[0].get_array(), (row["enhanced"] + 1) / 2)
    with pytest.raises(ValueError, match="differ in shape"):
        side_by_side(row["image"], row["enhanced"][:-1])


@pytest.mark.parametrize("absent", [None, "image", "enhanced", "prediction", "truth"])
def test_panel_has_a_column_for_what_any_row_has(row, absent):
    """Fails if a missing picture leaves a blank column or stops the drawing, pictures slip into the wrong column where
    a row has a gap, the titles of the rows are lost, or only dictionaries are rows, although objects are documented.
    """
    columns = {"image": "Image", "enhanced": "Enhanced image", "prediction": "Prediction", "truth": "Ground truth"}
    columns.pop(absent, None)
    row.pop(absent, None)
    gap = {**row, "name": "case_001", list(columns)[1]: None}
    figure = panel([row, SimpleNamespace(**gap)])
    assert headings(figure) == list(columns.values())
    assert [part.get_suptitle() for part in figure.subfigs[:2]] == ["case_000", "case_001"]
    shown = [bool(ax.images) for ax in figure.axes]
    assert shown == [True] * len(columns) + [number != 1 for number in range(len(columns))]


def test_legend_names_the_structures_that_are_shown(row):
    """Fails if a structure has another one's name or colour, or an unknown label stops the drawing."""
    for names, expected in (({1: "RV", 2: "MYO", 3: "LV"}, ["RV", "LV"]), ({1: "RV"}, ["RV", "label 3"])):
        (legend,) = panel([row], names).subfigs[-1].legends
        assert [text.get_text() for text in legend.get_texts()] == expected
        colors = [patch.get_facecolor()[:3] for patch in legend.get_patches()]
        assert colors == [to_rgb(LABEL_COLORS[0]), to_rgb(LABEL_COLORS[2])]


def test_labels_are_painted_where_they_are(row):
    """Fails if overlays are shifted, flipped, opaque or in the wrong colour: checked on the drawn pixels."""
    figure = panel([{"image": np.zeros((20, 24)), "truth": row["truth"]}])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3] / 255

    def at(y, x):
        column, line = figure.axes[1].transData.transform((x, y))
        return pixels[pixels.shape[0] - 1 - int(line), int(column)]

    np.testing.assert_allclose(at(8, 8), 0.35 * np.array(to_rgb(label_color(1))), atol=0.02)
    np.testing.assert_allclose(at(8, 18), 0.35 * np.array(to_rgb(label_color(3))), atol=0.02)
    np.testing.assert_allclose(at(16, 8), 0, atol=0.02)


def test_outline_closes_at_the_border_of_the_image():
    """Fails if a structure cut by the border is not outlined there, or a label that fills the slice has no outline."""
    ax = panel([{"truth": np.ones((10, 12), dtype=int)}]).axes[0]
    (contour,) = [c for c in ax.collections if c.get_paths() and len(c.get_paths()[0].vertices)]
    vertices = contour.get_paths()[0].vertices
    np.testing.assert_allclose(vertices.min(axis=0), (-0.5, -0.5))
    np.testing.assert_allclose(vertices.max(axis=0), (11.5, 9.5))


def test_models_have_a_column_each_between_image_and_truth(row):
    """Fails if a model's prediction stands below another model's name, or a double underscore stays in a heading."""
    other = np.roll(row["truth"], 1, axis=0)
    models = {"Net__2d": row["truth"], "B": other}
    figure = panel([{**row, "prediction": None, "predictions": models}, {**row, "predictions": {"B": other}}])
    assert headings(figure) == ["Image", "Enhanced image", "Prediction", "Net\n2d", "B", "Ground truth"]
    filled = [ax.images[-1].get_array()[..., 3] > 0 if ax.images else None for ax in figure.axes]
    np.testing.assert_array_equal(filled[3], row["truth"] > 0)
    np.testing.assert_array_equal(filled[4], other > 0)
    assert filled[2] is None and filled[9] is None
    np.testing.assert_array_equal(filled[10], other > 0)


def test_contour_style_does_not_cover_the_image(row):
    """Fails if outlines come with a filling, or without the outlines."""
    filled, contour = (panel([row], style=style).axes[3] for style in ("filled", "contour"))
    assert (len(filled.images), len(contour.images)) == (2, 1)
    assert len(contour.collections) == len(filled.collections) == 2


def test_boxes_are_drawn_into_all_pictures_of_their_row(row):
    """Fails if a box is missing in a column, is shifted, or appears in another row."""
    figure = panel([{**row, "boxes": [(4, 6, 10, 20)]}, row])
    boxes = [[box.get_bbox().extents.tolist() for box in ax.patches] for ax in figure.axes]
    assert boxes == [[[5.5, 3.5, 19.5, 9.5]]] * 4 + [[]] * 4


def test_colour_images_are_shown_in_colour(row):
    """Fails if photographs become grey, or the enhanced one is not moved from (-1, 1) to colours."""
    image = np.random.default_rng(0).integers(0, 255, (20, 24, 3)).astype(np.uint8)
    figure = panel([{"image": image, "enhanced": image / 128.0 - 1, "truth": row["truth"]}])
    shown = [ax.images[0].get_array() for ax in figure.axes]
    np.testing.assert_allclose(shown[0], image / 255)
    np.testing.assert_allclose(shown[1], image / 256)
    np.testing.assert_allclose(shown[2], image / 255)
    wide = panel([{"image": image.astype(float) * 100}]).axes[0].images[0].get_array()
    assert wide.min() == 0 and wide.max() == 1


def test_pixels_keep_their_shape(row):
    """Fails if thick slices are squeezed into square pixels, or rows are not as high as their pictures."""
    figure = panel([{**row, "aspect": 0.5}, row])
    figure.draw_without_rendering()
    first, other = (figure.axes[number].get_window_extent() for number in (0, 4))
    assert first.height / first.width == pytest.approx(0.5 * 20 / 24)
    assert other.height / other.width == pytest.approx(20 / 24)
    assert first.width == pytest.approx(other.width, rel=0.02)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3)])
def test_constant_image_is_drawn(shape):
    """Fails if an image without contrast, such as an empty slice, gives a division by zero."""
    with np.errstate(divide="raise", invalid="raise"):
        panel([{"image": np.full(shape, 7.0)}]).draw_without_rendering()


@pytest.mark.parametrize(
    ("rows", "style", "message"),
    [
        ([], "filled", "nothing to draw"),
        ([{"name": "empty", "image": None}], "filled", "nothing to draw"),
        ([{"image": np.zeros((4, 4)), "truth": np.zeros((4, 5), dtype=int)}], "filled", "differ in shape"),
        ([{"image": np.zeros((3, 4, 4))}], "filled", r"'image', got \(3, 4, 4\)"),
        ([{"truth": np.zeros((4, 4, 3))}], "filled", r"'truth', got \(4, 4, 3\)"),
        ([{"predictions": {"Net": np.zeros(4)}}], "filled", r"'Net', got \(4,\)"),
        ([{"image": np.zeros((4, 4))}], "outline", "'filled' or 'contour'"),
    ],
)
def test_rows_that_cannot_be_drawn_are_refused(rows, style, message):
    """Fails if wrong input gives a blank picture or an error that does not name the cause."""
    with pytest.raises(ValueError, match=message):
        panel(rows, style=style)


def test_colours_repeat_and_background_has_none():
    """Fails if a data set with many labels runs out of colours, or background is painted."""
    assert label_color(9) == label_color(1)
    with pytest.raises(ValueError, match="from 1 on"):
        label_color(0)


def test_names_of_labels_and_regions():
    """Fails if background or ignored voxels are in the legend, or regions are called by their first value."""
    labels = {"background": 0, "RV": 1, "LV": 2, "ignore": 3}
    assert label_names({"labels": labels}) == {1: "RV", 2: "LV"}
    regions = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "ignore": 4}
    assert label_names({"labels": regions, "regions_class_order": [1, 3]}) == {1: "whole", 3: "core"}


def fold(epochs, dice=0.5, rate=1e-2, seconds=36):
    """A training of so many epochs."""
    number = np.arange(epochs)
    return {
        "epoch": number, "hours": (number + 1) * seconds / 3600, "train_loss": -number / 10, "val_loss": -number / 20,
        "dice": np.full(epochs, dice), "learning_rate": np.full(epochs, rate),
    }  # fmt: skip


def test_curves_of_folds_and_their_mean():
    """Fails if a quantity is in the wrong axes, a fold is missing, or the mean is not over the epochs in common."""
    figure = training_curves({"DIN": [fold(5, dice=0.4), fold(3, dice=0.8)], "nnU-Net": [fold(4)]})
    assert headings(figure) == ["Training loss", "Validation loss", "Pseudo Dice on random patches", "Learning rate"]
    lines = figure.axes[2].lines
    assert [len(line.get_xdata()) for line in lines] == [5, 3, 3, 4]
    np.testing.assert_allclose(lines[2].get_ydata(), 0.6)
    np.testing.assert_allclose(figure.axes[1].lines[3].get_ydata(), [0, -0.05, -0.1, -0.15])
    assert [line.get_color() for line in lines] == [LINES[0][0]] * 3 + [LINES[1][0]]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["DIN (mean of 2 folds)", "nnU-Net"]
    assert figure.axes[3].get_yscale() == "log"


def test_curves_against_time():
    """Fails if epochs are drawn under the name of hours."""
    figure = training_curves({"DIN": [fold(2, seconds=7200)]}, against="time")
    assert figure.axes[0].get_xlabel() == "training time in hours"
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xdata(), [2, 4])


def test_a_training_of_one_epoch_is_visible():
    """Fails if a line through a single point shows nothing."""
    assert training_curves({"DIN": [fold(1)]}).axes[0].lines[0].get_marker() == "o"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
@pytest.mark.parametrize("ending", [".png", ".pdf", ".svg"])
def test_a_full_disk_is_named(ending, tmp_path, monkeypatch):
    """Fails if matplotlib's PDF says something else than that the disk is full."""
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "0")
    (tmp_path / f".0.partial.picture{ending}").symlink_to("/dev/full")
    monkeypatch.setattr(Path, "touch", lambda *_, **__: None)
    with pytest.raises(OSError, match=f"No space left on device: .*picture{ending}"):
        save_figure(Figure(figsize=(1, 1)), tmp_path / f"picture{ending}")
