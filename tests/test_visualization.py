"""Pictures: the right axes, the right colours in the right place, and no display needed."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from nnunet_din.visualization import LABEL_COLORS, label_color, largest_slice, panel, save_figure, side_by_side


@pytest.fixture
def row():
    """One complete row: a square of label 1 beside a square of label 3."""
    label = np.zeros((20, 24), dtype=np.uint8)
    label[4:12, 4:12] = 1
    label[4:12, 14:22] = 3
    image = np.linspace(0, 500, label.size).reshape(label.shape)
    return {"name": "case_000", "image": image, "enhanced": image / 251 - 1, "prediction": label, "truth": label}


def titles(figure):
    """Column headings."""
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_largest_slice_is_the_one_with_most_foreground():
    """Fails if labels are summed by value, so that a few voxels of a high label outweigh many of a low one."""
    label = np.zeros((5, 8, 8), dtype=np.uint8)
    label[1, :2, :2] = 3
    label[3, :3, :3] = 1
    assert largest_slice(label) == 3


def test_largest_slice_without_foreground_is_the_middle():
    """Fails if an empty label map gives the first slice, which rarely shows anything."""
    assert largest_slice(np.zeros((7, 4, 4), dtype=int)) == 3


def test_largest_slice_refuses_other_dimensions():
    """Fails if a single slice is taken for a volume and its rows for slices."""
    with pytest.raises(ValueError, match=r"\(Z, H, W\)"):
        largest_slice(np.zeros((4, 4)))


def test_side_by_side_has_two_pictures(row):
    """Fails if a picture is missing or the enhanced image is not shown on its whole range from -1 to 1."""
    figure = side_by_side(row["image"], row["enhanced"])
    assert len(figure.axes) == 2
    assert titles(figure) == ["Image", "Enhanced image"]
    assert figure.axes[1].images[0].get_clim() == (-1, 1)
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), row["enhanced"])


def test_side_by_side_refuses_slices_that_do_not_fit(row):
    """Fails if volumes or unrelated slices are drawn without a word."""
    with pytest.raises(ValueError, match="differ in shape"):
        side_by_side(row["image"], row["enhanced"][:-1])
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        side_by_side(row["image"][None], row["enhanced"][None])


def test_panel_has_one_axes_per_row_and_column(row):
    """Fails if a column is lost or the rows' titles are not shown."""
    figure = panel([row, {**row, "name": "case_001"}, {**row, "name": "case_002"}])
    assert len(figure.axes) == 3 * 4
    assert titles(figure) == ["Image", "Enhanced image", "Prediction", "Ground truth"]
    assert [ax.get_title(loc="left") for ax in figure.axes[::4]] == ["case_000", "case_001", "case_002"]


@pytest.mark.parametrize("absent", ["image", "enhanced", "prediction", "truth"])
def test_panel_leaves_out_a_column_that_no_row_has(row, absent):
    """Fails if a missing picture leaves a blank column or stops the drawing."""
    row[absent] = None
    figure = panel([row])
    assert len(figure.axes) == 3
    figure.canvas.draw()


def test_panel_keeps_a_column_that_only_one_row_lacks(row):
    """Fails if pictures slip into the wrong column where a row has a gap."""
    figure = panel([row, {**row, "truth": None}])
    assert len(figure.axes) == 8
    assert figure.axes[3].images
    assert not figure.axes[7].images


def test_panel_takes_objects_as_rows(row):
    """Fails if only dictionaries work, although dataclasses are documented."""
    assert len(panel([SimpleNamespace(**row)]).axes) == 4


def test_legend_names_the_structures_that_are_shown(row):
    """Fails if a structure has no name or another structure's colour in the legend."""
    (legend,) = panel([row], {1: "RV", 2: "MYO", 3: "LV"}).legends
    assert [text.get_text() for text in legend.get_texts()] == ["RV", "LV"]
    assert [patch.get_facecolor()[:3] for patch in legend.get_patches()] == [
        to_rgb(LABEL_COLORS[0]),
        to_rgb(LABEL_COLORS[2]),
    ]


def test_label_without_a_name_is_called_by_its_number(row):
    """Fails if an unknown label stops the drawing, which happens when a network is evaluated on other labels."""
    (legend,) = panel([row], {1: "RV"}).legends
    assert [text.get_text() for text in legend.get_texts()] == ["RV", "label 3"]


def test_labels_are_painted_where_they_are(row):
    """Fails if overlays are shifted, flipped, opaque or in the wrong colour: checked on the drawn pixels."""
    row = {"image": np.zeros((20, 24)), "truth": row["truth"]}
    figure = panel([row])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3] / 255
    ax = figure.axes[1]

    def at(y, x):
        column, line = ax.transData.transform((x, y))
        return pixels[pixels.shape[0] - 1 - int(line), int(column)]

    np.testing.assert_allclose(at(8, 8), 0.35 * np.array(to_rgb(label_color(1))), atol=0.02)
    np.testing.assert_allclose(at(8, 18), 0.35 * np.array(to_rgb(label_color(3))), atol=0.02)
    np.testing.assert_allclose(at(16, 8), 0, atol=0.02)


def test_outline_closes_at_the_border_of_the_image():
    """Fails if a structure cut by the border is not outlined there, or a label that fills the slice has no outline."""
    label = np.ones((10, 12), dtype=int)
    ax = panel([{"truth": label}]).axes[0]
    (contour,) = [c for c in ax.collections if c.get_paths() and len(c.get_paths()[0].vertices)]
    vertices = contour.get_paths()[0].vertices
    np.testing.assert_allclose(vertices.min(axis=0), (-0.5, -0.5))
    np.testing.assert_allclose(vertices.max(axis=0), (11.5, 9.5))


def test_constant_image_is_drawn():
    """Fails if an image without contrast, such as an empty slice, gives a division by zero."""
    panel([{"image": np.full((8, 8), 7.0)}]).canvas.draw()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "nothing to draw"),
        ([{"name": "empty", "image": None}], "nothing to draw"),
        ([{"image": np.zeros((4, 4)), "truth": np.zeros((4, 5), dtype=int)}], "differ in shape"),
        ([{"image": np.zeros((3, 4, 4))}], r"'image', got \(3, 4, 4\)"),
    ],
)
def test_rows_that_cannot_be_drawn_are_refused(rows, message):
    """Fails if wrong input gives a blank picture or an error that does not name the cause."""
    with pytest.raises(ValueError, match=message):
        panel(rows)


def test_colours_repeat_and_background_has_none():
    """Fails if a data set with many labels runs out of colours, or background is painted."""
    assert label_color(8) == label_color(1)
    assert len(set(LABEL_COLORS)) == 7
    with pytest.raises(ValueError, match="from 1 on"):
        label_color(0)


def test_saving_makes_the_folder_and_a_png(row, tmp_path):
    """Fails if the file is missing or not a picture."""
    path = save_figure(panel([row]), tmp_path / "new" / "picture.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_drawing_needs_neither_pyplot_nor_a_display(tmp_path):
    """Fails if pyplot is loaded: it opens a display, keeps every figure in memory and changes the caller's backend."""
    code = (
        "import sys, numpy as np; from nnunet_din.visualization import save_figure, side_by_side; "
        "assert 'matplotlib' not in sys.modules; "
        "save_figure(side_by_side(np.eye(4), np.eye(4)), sys.argv[1]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "picture.png")], check=True)
    assert (tmp_path / "picture.png").exists()
