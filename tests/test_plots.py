"""Pictures of a comparison: what is drawn is what the tables say. `test_pictures.py` compares how it looks."""

from __future__ import annotations

import re
import subprocess
import sys
import zlib

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch

from nnunet_din.data.names import short_names
from nnunet_din.plotting.scores import MOST_DOTS, dice_against_cost, metric_by_structure, rank_stability
from nnunet_din.plotting.style import LABEL_COLORS, save_both

DIN = "nnUNetTrainerDIN_5epochs__nnUNetDINAttoPlans__2d"
UNET = "nnUNetTrainer_5epochs__nnUNetPlans__2d"
STRUCTURES = ("RV", "Myo", "LV")


def make_cases(models=("A", "B"), n=10):
    """Scores of `n` cases; the median Dice of a box says which model and structure it belongs to."""
    rows = [
        {"model": model, "structure": structure, "case": f"case_{k}",
         "Dice": 0.9 - 0.1 * i - 0.01 * j + 0.001 * (k - (n - 1) / 2), "HD95": 1 + i + j + 0.1 * k}
        for i, model in enumerate(models) for j, structure in enumerate(STRUCTURES) for k in range(n)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(truth_empty=False, prediction_empty=False)


def make_table(models, costs, dice=0.8):
    low, high = np.subtract(dice, 0.02), np.add(dice, 0.01)
    return pd.DataFrame(
        {"model": models, "multiply_adds": costs, "Dice_mean": dice, "Dice_low": low, "Dice_high": high}
    )


def boxes(ax):
    """Line and colour of every box."""
    found = [patch for patch in ax.patches if isinstance(patch, PathPatch)]
    return [(round(box.get_path().get_extents().y0 + 0.35), box.get_facecolor()) for box in found]


def medians(ax):
    """Scores of the thick lines in the boxes."""
    return [line.get_xdata()[0] for line in ax.lines if line.get_linewidth() == 1.4]


def dots(ax):
    """One array of scores per box that shows its cases."""
    return [np.asarray(line.get_xdata()) for line in ax.lines if line.get_alpha() is not None]


def line_labels(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


# ---- short names ----


@pytest.mark.parametrize(
    ("models", "short"),
    [
        ([DIN, UNET], ["nnUNetTrainerDIN_5epochs, nnUNetDINAttoPlans", "nnUNetTrainer_5epochs, nnUNetPlans"]),
        (["T__P__2d", "U__P__3d"], ["T, 2d", "U, 3d"]),
        ([DIN], [DIN]),
        (["baseline", "T__P__2d"], ["baseline", "T__P__2d"]),
        (["ensemble___T__P__2d___U__P__2d___0_1", DIN], ["ensemble___T__P__2d___U__P__2d___0_1", DIN]),
        # "P" is a folder of predictions and the short name of plans.
        (["T__P__2d", "T__Q__2d", "P"], ["T__P__2d", "T__Q__2d", "P"]),
    ],
)
def test_short_names_keep_what_differs(models, short):
    """Fails if a part that is equal everywhere stays, one that differs is lost, or two names are the same."""
    assert short_names(models) == dict(zip(models, short, strict=True))


# ---- scores by structure ----


@pytest.mark.parametrize("models", [["A"], ["C", "A"], None])
def test_each_structure_has_a_box_for_each_model_in_order(models):
    """Fails if boxes are lost, stand in another order, show another model's scores, or have another model's colour."""
    figure = metric_by_structure(make_cases("ABC"), models=models)
    models = models or ["A", "B", "C"]
    assert [ax.get_title() for ax in figure.axes] == list(STRUCTURES)
    assert line_labels(figure.axes[0]) == models
    for j, ax in enumerate(figure.axes):
        np.testing.assert_allclose(medians(ax), [90 - 10 * "ABC".index(model) - j for model in models])
        assert [place for place, _ in boxes(ax)] == list(range(len(models)))
        assert all(same_color(color, LABEL_COLORS[place]) for place, color in boxes(ax))


def test_missing_values_are_not_zero():
    """Fails if a structure that is neither in truth nor in prediction counts as missed, or leaves the whole box out."""
    cases = make_cases(n=11)
    cases.loc[cases["case"] == "case_0", "Dice"] = np.nan
    cases.loc[(cases["model"] == "A") & (cases["structure"] == "Myo"), "Dice"] = np.nan
    axes = metric_by_structure(cases).axes
    assert [[len(values) for values in dots(ax)] for ax in axes] == [[10, 10], [10], [10, 10]]
    assert [place for place, _ in boxes(axes[1])] == [1], "the model keeps its line"
    assert axes[0].get_xlim()[0] > 70


def test_cases_of_large_data_sets_are_not_all_shown():
    """Fails if dots hide the boxes of large data sets, or a small one is shown by its quartiles only."""
    for n, shown in ((MOST_DOTS, MOST_DOTS), (MOST_DOTS + 1, 0)):
        ax = metric_by_structure(make_cases(n=n)).axes[0]
        assert sum(map(len, dots(ax))) == 2 * shown and len(boxes(ax)) == 2


def test_a_far_distance_does_not_flatten_the_others():
    """Fails if one distance of a whole image diagonal leaves no room to read distances of some millimetres."""
    cases = make_cases()
    cases.loc[0, "HD95"] = 330.0
    ax = metric_by_structure(cases, "HD95").axes[0]
    low, one, ten, far, top = ax.transData.transform([(x, 0) for x in (0, 1, 10, 330, ax.get_xlim()[1])])[:, 0]
    assert (ten - one) / (top - low) > 0.2 and far < top


@pytest.mark.parametrize(("metric", "side"), [("HD95", "right"), ("Dice", "left")])
def test_missed_structures_are_counted_beside_the_boxes(metric, side):
    """Fails if a missed structure flattens the boxes, or disappears without a word."""
    cases = make_cases()
    cases.loc[[0, 1], "prediction_empty"] = True
    cases.loc[[0, 1], ["Dice", "HD95"]] = [0.0, 330.0]
    figure = metric_by_structure(cases, metric)
    plain = metric_by_structure(cases.drop(index=[0, 1]), metric)
    assert figure.axes[0].get_xlim() == plain.axes[0].get_xlim()
    (text,) = (text for ax in figure.axes for text in ax.texts)
    assert (text.get_text(), text.get_position()[1], text.get_ha()) == ("2", 0, side)
    assert "cases that miss the structure" in figure.get_supxlabel()
    assert [len(values) for values in dots(figure.axes[0])] == [8, 10]


@pytest.mark.parametrize(("metric", "value"), [("Dice", 1.0), ("Dice", 0.0), ("HD95", 0.0)])
def test_equal_scores_are_drawn_within_a_sensible_range(metric, value):
    """Fails if perfect predictions give an axis of a millionth, or one that reaches beyond what the metric can be."""
    low, high = metric_by_structure(make_cases().assign(**{metric: value}), metric).axes[0].get_xlim()
    assert low < 100 * value < high and 2 < high - low < 120
    assert low > -6 and high < 106


def test_what_cannot_be_drawn_is_refused():
    """Fails if a wrong name gives a blank picture or an error that does not say what there is."""
    cases = make_cases()
    with pytest.raises(ValueError, match="'IoU'.*Dice, HD95, NSD"):
        metric_by_structure(cases, "IoU")
    with pytest.raises(ValueError, match="no model 'Z' here.*A, B"):
        metric_by_structure(cases, models=["A", "Z"])
    with pytest.raises(ValueError, match="nothing to draw"):
        metric_by_structure(cases.assign(Dice=np.nan))
    with pytest.raises(ValueError, match="nothing to draw"):
        rank_stability(pd.DataFrame({"A": [np.nan]}))
    with pytest.raises(ValueError, match="'price'.*multiply_adds, seconds_per_epoch, parameters"):
        dice_against_cost(make_table(["A"], [1.0]), "price")
    with pytest.raises(ValueError, match="nothing to draw"):
        dice_against_cost(make_table(["A"], [np.nan]))


# ---- ranks ----


def circles(ax):
    """Line, rank and area of every circle."""
    return {
        (int(y), float(x)): area
        for collection in ax.collections
        if hasattr(collection, "get_sizes")
        for (x, y), area in zip(collection.get_offsets(), collection.get_sizes(), strict=False)
    }


def test_areas_are_shares():
    """Fails if the diameter, and not the area, is the share; a rank is drawn that no sample has; the mean rank of a tie
    is rounded to a place; or samples without a rank take part in the shares.
    """
    ranks = pd.DataFrame({"A": [1, 1, 1, 2, np.nan], "B": [2.5, 2.5, 2, 1, np.nan], "C": [2.5, 2.5, 3, 3, 3]})
    areas = circles(rank_stability(ranks, models=["C", "A", "B"]).axes[0])
    largest = areas[1, 1] / 0.75
    assert {place: area / largest for place, area in areas.items()} == pytest.approx(
        {(0, 2.5): 0.4, (0, 3): 0.6, (1, 1): 0.75, (1, 2): 0.25, (2, 2.5): 0.5, (2, 2): 0.25, (2, 1): 0.25}
    )


def test_median_and_interval_are_marked():
    """Fails if the cross is not the median, or the line leaves out more or less than 2.5 % at each end."""
    ranks = pd.DataFrame({"A": [1] * 2 + [2] * 8 + [3] * 60 + [4] * 28 + [5] * 2, "B": [1] * 100})
    (ax,) = rank_stability(ranks).axes
    (crosses,) = (line for line in ax.lines if line.get_marker() == "x")
    assert crosses.get_xdata().tolist() == [3, 1]
    (intervals,) = (found for found in ax.collections if hasattr(found, "get_segments"))
    assert [segment[:, 0].tolist() for segment in intervals.get_segments()] == [[2, 4], [1, 1]]
    assert line_labels(ax) == ["A", "B"] and ax.get_ylim()[0] > ax.get_ylim()[1]


# ---- Dice against cost ----


def points(ax):
    """Cost, Dice, and the ends of the interval of every model."""
    for line, _, (bar,) in ax.containers:
        yield line.get_xdata()[0], line.get_ydata()[0], *(y for segment in bar.get_segments() for *_, y in segment)


@pytest.mark.parametrize(
    ("cost", "values", "shown", "label"),
    [
        ("multiply_adds", [4e9, 9e9], [4, 9], "Multiply-adds per image in billions"),
        ("parameters", [323e6, 3e6], [323, 3], "Parameters in millions"),
        ("seconds_per_epoch", [75.0, 80], [75, 80], "Seconds per epoch"),
    ],
)
def test_points_and_intervals(cost, values, shown, label):
    """Fails if a point or an interval is not where the table says, or the unit of the axis is not that of its label."""
    table = make_table(["A", "B"], values, [0.8, 0.9]).rename(columns={"multiply_adds": cost})
    figure = dice_against_cost(table, cost)
    (ax,) = figure.axes
    np.testing.assert_allclose(list(points(ax)), [(shown[0], 80, 78, 81), (shown[1], 90, 88, 91)])
    assert ax.get_xlabel() == label
    assert ax.get_xscale() == ("log" if cost == "parameters" else "linear")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["A", "B"]


def test_models_of_unknown_cost_are_named():
    """Fails if a model disappears without a word, is drawn at zero, or takes its colour from the next one."""
    table = make_table(["A", "B", "C", "D"], [np.nan, 5e9, 6e9, 7e9], [0.8, 0.81, np.nan, 0.82])
    table.loc[1, ["Dice_low", "Dice_high"]] = np.nan
    figure = dice_against_cost(table)
    assert [x for x, *_ in points(figure.axes[0])] == [5, 7]
    assert figure.get_supxlabel() == "Not shown (unknown cost or Dice): A; C"
    assert [container[0].get_color() for container in figure.axes[0].containers] == [LABEL_COLORS[1], LABEL_COLORS[3]]


def test_equal_costs_stand_side_by_side():
    """Fails if two trainers of one network hide each other."""
    figure = dice_against_cost(make_table(["A", "B", "C"], [5e9, 5e9, 6e9]))
    figure.draw_without_rendering()
    a, b, c = (line.get_transform().transform((5, 80))[0] for line, *_ in figure.axes[0].containers)
    assert (b - a) * 72 / figure.dpi == pytest.approx(7) and a < c < b


# ---- all of them ----


def drawn_text(pdf):
    """The letters that a PDF file draws as text."""
    letters = b""
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.S):
        try:
            content = zlib.decompress(stream)
        except zlib.error:
            continue
        for strings in re.findall(rb"(\[[^\]]*\]\s*TJ|\([^)]*\)\s*Tj)", content):
            letters += b"".join(re.findall(rb"\(([^)]*)\)", strings)).replace(b"\0", b"") + b"\n"
    return letters.decode("latin-1")


def test_pdf_holds_text_as_text(tmp_path):
    """Fails if letters are outlines or fonts of type 3: the text cannot be searched, and journals refuse it."""
    figure = Figure(figsize=(1, 1))
    figure.text(0.1, 0.5, "swinunet")
    paths = save_both(figure, tmp_path / "new" / "fold_0.5epochs")
    assert [path.name for path in paths] == ["fold_0.5epochs.pdf", "fold_0.5epochs.png"]
    pdf = paths[0].read_bytes()
    assert pdf.startswith(b"%PDF") and paths[1].read_bytes().startswith(b"\x89PNG")
    assert b"/Type3" not in pdf and b"/FontFile2" in pdf
    assert "swinunet" in drawn_text(pdf).split("\n")


@pytest.mark.slow
def test_drawing_needs_neither_pyplot_nor_a_display(tmp_path):
    """Fails if pyplot is loaded, which opens a display, keeps every figure in memory and changes the caller's backend;
    or if matplotlib is loaded when the command line only imports the modules.
    """
    code = (
        "import sys; from nnunet_din.plotting.scores import rank_stability; import nnunet_din.plotting.panel; "
        "from nnunet_din.plotting.style import save_both; "
        "assert not {'matplotlib', 'pandas'} & set(sys.modules); import pandas; "
        "save_both(rank_stability(pandas.DataFrame({'A': [1, 2], 'B': [2, 1]})), sys.argv[1]); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "picture")], check=True)
    assert (tmp_path / "picture.pdf").exists()
