"""Pictures of a comparison: what is drawn is what the tables say, and everything is named and fits."""

from __future__ import annotations

import re
import subprocess
import sys
import zlib

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color
from matplotlib.patches import PathPatch

from nnunet_din.nnunet.models import short_names
from nnunet_din.plotting.scores import MOST_DOTS, dice_against_cost, metric_by_structure, rank_stability
from nnunet_din.plotting.style import LABEL_COLORS, save_both

DIN = "nnUNetTrainerDIN_5epochs__nnUNetDINAttoPlans__2d"
UNET = "nnUNetTrainer_5epochs__nnUNetPlans__2d"
LONG = [f"nnUNetTrainerDIN_variant{i}__nnUNetDINPlansNumber{i}__2d" for i in range(9)]
MILLIMETRES = 25.4


def make_cases(models=("A", "B"), structures=("RV", "Myo", "LV"), n=10):
    """Scores of `n` cases; the median Dice of a box says which model and structure it belongs to."""
    rows = []
    for i, model in enumerate(models):
        for j, structure in enumerate(structures):
            for k in range(n):
                dice = 0.9 - 0.1 * i - 0.01 * j + 0.001 * (k - (n - 1) / 2)
                rows.append(
                    {"model": model, "fold": str(k % 5), "case": f"case_{k}", "structure": structure,
                     "Dice": dice, "NSD": dice, "HD95": 1 + i + j + 0.1 * k}
                )  # fmt: skip
    return pd.DataFrame(rows)


def make_table(models, costs, dice=0.8):
    return pd.DataFrame(
        {"model": models, "multiply_adds": costs, "Dice_mean": dice, "Dice_low": np.subtract(dice, 0.02),
         "Dice_high": np.add(dice, 0.01)}
    )  # fmt: skip


def boxes(ax):
    return [patch for patch in ax.patches if isinstance(patch, PathPatch)]


def centers(ax):
    """Where the boxes stand along x."""
    return [(box.get_path().get_extents().x0 + box.get_path().get_extents().x1) / 2 for box in boxes(ax)]


def medians(ax):
    """Heights of the thick lines in the boxes."""
    return [line.get_ydata()[0] for line in ax.lines if line.get_linewidth() == 1.4]


def dots(ax):
    """One array of scores per box that shows its cases."""
    return [np.asarray(line.get_ydata()) for line in ax.lines if line.get_alpha() is not None]


def tick_labels(ax):
    return [label.get_text() for label in ax.get_xticklabels()]


def legend(figure):
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def on_one_line(text):
    return text.replace("_\n", "_").replace("\n", " ")


# ---- short names ----


def test_short_names_keep_what_differs():
    """Fails if a part that is equal everywhere stays, or one that differs is lost."""
    assert short_names([DIN, UNET]) == {
        DIN: "nnUNetTrainerDIN_5epochs, nnUNetDINAttoPlans",
        UNET: "nnUNetTrainer_5epochs, nnUNetPlans",
    }
    assert list(short_names(["T__P__2d", "T__P__3d_fullres"]).values()) == ["2d", "3d_fullres"]
    assert list(short_names(["T__P__2d", "U__P__3d"]).values()) == ["T, 2d", "U, 3d"]


@pytest.mark.parametrize(
    "models", [[DIN], ["baseline", "mine"], ["T__P__2d", "baseline"], ["ensemble___T__P__2d___U__P__2d___0_1", DIN], []]
)
def test_names_with_nothing_in_common_stay(models):
    """Fails if a single model loses its whole name, or names of another form are cut."""
    assert short_names(models) == {model: model for model in models}


def test_short_names_are_unique():
    """Fails if a shortened name equals another model's: "P" is a folder of predictions and a name of plans."""
    models = ["T__P__2d", "T__Q__2d", "P"]
    assert short_names(models) == {model: model for model in models}
    assert short_names([DIN, UNET, DIN, "P"]).keys() == {DIN, UNET, "P"}


# ---- scores by structure ----


@pytest.mark.parametrize("models", [["A"], ["A", "B"], ["A", "B", "C"]])
def test_one_box_per_structure_and_model_in_order(models):
    """Fails if boxes are lost, stand in another order or under another structure, or show another model's scores."""
    cases = make_cases(models)
    (ax,) = metric_by_structure(cases).axes
    assert len(boxes(ax)) == 3 * len(models)
    assert centers(ax) == sorted(centers(ax))
    assert [round(center) for center in centers(ax)] == [j for j in range(3) for _ in models]
    expected = [0.9 - 0.1 * i - 0.01 * j for j in range(3) for i in range(len(models))]
    np.testing.assert_allclose(medians(ax), np.multiply(100, expected))
    assert tick_labels(ax) == ["RV", "Myo", "LV"]


def test_models_are_drawn_in_the_given_order_and_coloured_by_it():
    """Fails if the legend and the boxes disagree on which colour a model has, or the given order is not kept."""
    figure = metric_by_structure(make_cases(["A", "B", "C"]), models=["C", "A"])
    (ax,) = figure.axes
    assert legend(figure) == ["C", "A"]
    np.testing.assert_allclose(medians(ax)[:2], [70, 90])
    assert [LABEL_COLORS.index(c) for box in boxes(ax) for c in LABEL_COLORS if same_color(box.get_facecolor(), c)] == [
        0, 1, 0, 1, 0, 1,
    ]  # fmt: skip
    assert [
        same_color(patch.get_facecolor(), color)
        for patch, color in zip(figure.legends[0].get_patches(), LABEL_COLORS, strict=False)
    ] == [True, True]


def test_colours_repeat_with_hatching():
    """Fails if the ninth model looks like the first."""
    figure = metric_by_structure(make_cases([f"m{i}" for i in range(9)]))
    looks = [(patch.get_facecolor(), patch.get_hatch()) for patch in figure.legends[0].get_patches()]
    assert len(set(looks)) == 9
    assert looks[8][0] == looks[0][0] and looks[8][1] and not looks[0][1]
    assert [(box.get_facecolor(), box.get_hatch()) for box in boxes(figure.axes[0])[:9]] == looks


@pytest.mark.parametrize(
    ("metric", "label"),
    [
        ("Dice", "Dice in % (higher is better)"),
        ("NSD", "NSD in % (higher is better)"),
        ("HD95", "HD95 in mm (lower is better)"),
    ],
)
def test_axis_names_metric_unit_and_direction(metric, label):
    """Fails if a reader cannot tell millimetres from voxels, or good from bad."""
    assert metric_by_structure(make_cases(), metric).axes[0].get_ylabel() == label


def test_missing_values_are_not_zero():
    """Fails if a structure that is neither in truth nor in prediction counts as missed, or leaves the whole box out."""
    cases = make_cases(n=11)
    cases.loc[cases["case"] == "case_0", "Dice"] = np.nan
    cases.loc[(cases["model"] == "B") & (cases["structure"] == "Myo"), "Dice"] = np.nan
    (ax,) = metric_by_structure(cases).axes
    assert [len(values) for values in dots(ax)] == [10] * 5
    assert min(values.min() for values in dots(ax)) > 70
    assert [round(center) for center in centers(ax)] == [0, 0, 1, 2, 2]
    assert tick_labels(ax) == ["RV", "Myo", "LV"], "the structure keeps its place"


def test_few_cases_are_all_shown_and_many_are_not():
    """Fails if dots hide the boxes of large data sets, or a small one is shown by its quartiles only."""
    (few,) = metric_by_structure(make_cases(n=MOST_DOTS)).axes
    assert [len(values) for values in dots(few)] == [MOST_DOTS] * 6
    (many,) = metric_by_structure(make_cases(n=MOST_DOTS + 1)).axes
    assert not dots(many) and len(boxes(many)) == 6


def test_a_missed_structure_does_not_flatten_the_others():
    """Fails if one distance of a whole image diagonal leaves no room to read distances of some millimetres."""
    cases = make_cases()
    cases.loc[0, "HD95"] = 330.0
    (ax,) = metric_by_structure(cases, "HD95").axes
    low, one, ten, diagonal, top = ax.transData.transform([(0, y) for y in (0, 1, 10, 330, ax.get_ylim()[1])])[:, 1]
    assert (ten - one) / (top - low) > 0.2
    assert diagonal < top
    assert {0, 1, 10, 100} <= set(ax.get_yticks())
    assert not any(label.get_text() for label in ax.get_yticklabels(minor=True)), "minor labels are larger than major"


def test_missed_structures_are_counted_beside_the_boxes():
    """Fails if a missed structure flattens the boxes, or disappears without a word."""
    cases = make_cases()
    cases["truth_empty"] = cases["prediction_empty"] = False
    cases.loc[[0, 1], "prediction_empty"] = True
    cases.loc[[0, 1], ["Dice", "NSD", "HD95"]] = [0.0, 0.0, 330.0]
    plain = metric_by_structure(cases.drop(index=[0, 1]), "HD95").axes[0].get_ylim()
    for metric in ("HD95", "Dice"):
        figure = metric_by_structure(cases, metric)
        (ax,) = figure.axes
        assert [text.get_text() for text in ax.texts] == ["2"]
        assert legend(figure)[-1].startswith("cases that miss the structure")
        if metric == "HD95":
            assert ax.get_ylim() == plain
        else:
            assert ax.get_ylim()[0] > 50
    assert len(dots(ax)[0]) == len(dots(ax)[1]) - 2


def test_outliers_have_the_colour_of_their_model():
    cases = make_cases(n=MOST_DOTS + 1)
    cases.loc[0, "Dice"] = 0.1
    (ax,) = metric_by_structure(cases).axes
    (outlier,) = (line for line in ax.lines if line.get_marker() == "o" and len(line.get_ydata()))
    assert same_color(outlier.get_markerfacecolor(), LABEL_COLORS[0])


@pytest.mark.parametrize(("metric", "value"), [("Dice", 1.0), ("Dice", 0.0), ("HD95", 0.0)])
def test_equal_scores_are_drawn_within_a_sensible_range(metric, value):
    """Fails if perfect predictions give an axis of a millionth, or one that reaches beyond what the metric can be."""
    cases = make_cases()
    cases[metric] = value
    (ax,) = metric_by_structure(cases, metric).axes
    low, high = ax.get_ylim()
    assert low < (100 * value if metric == "Dice" else value) < high
    if metric == "Dice":
        assert high - low > 4
        assert -6 < low and high < 103


@pytest.mark.slow
def test_many_boxes_go_to_several_rows():
    """Fails if 72 boxes are squeezed into one row, or structures are lost when rows are broken."""
    structures = [f"s{j}" for j in range(7)]
    figure = metric_by_structure(make_cases(LONG, structures, n=3))
    assert len(figure.axes) == 2
    assert [label for ax in figure.axes for label in tick_labels(ax)] == structures
    assert sum(len(boxes(ax)) for ax in figure.axes) == 63
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_what_cannot_be_drawn_is_refused():
    """Fails if a wrong name gives a blank picture or an error that does not say what there is."""
    cases = make_cases()
    with pytest.raises(ValueError, match="'IoU'.*Dice, HD95, NSD"):
        metric_by_structure(cases, "IoU")
    with pytest.raises(ValueError, match="no model 'Z' here.*A, B"):
        metric_by_structure(cases, models=["A", "Z"])
    with pytest.raises(ValueError, match="nothing to draw"):
        metric_by_structure(cases.assign(Dice=np.nan))


# ---- ranks ----


@pytest.fixture
def ranks():
    """A is first in 60 of 100 samples, second in 40; C is always third."""
    return pd.DataFrame({"A": [1.0] * 60 + [2.0] * 40, "B": [2.0] * 60 + [1.0] * 40, "C": [3.0] * 100})


def blobs(ax):
    """Place, rank and area of every circle."""
    return {
        (int(x), float(y)): area
        for collection in ax.collections
        for (x, y), area in zip(collection.get_offsets(), collection.get_sizes(), strict=True)
    }


def test_areas_are_shares(ranks):
    """Fails if the diameter, and not the area, is the share, or a rank is drawn that no sample has."""
    (ax,) = rank_stability(ranks).axes
    areas = blobs(ax)
    assert areas.keys() == {(0, 1), (0, 2), (1, 1), (1, 2), (2, 3)}
    whole = areas[2, 3]
    assert {key: area / whole for key, area in areas.items()} == pytest.approx(
        {(0, 1): 0.6, (0, 2): 0.4, (1, 1): 0.4, (1, 2): 0.6, (2, 3): 1.0}
    )


def test_median_and_interval_are_marked():
    """Fails if the cross is not the median, or the line leaves out more or less than 2.5 % at each end."""
    ranks = pd.DataFrame({"A": [1] * 2 + [2] * 8 + [3] * 60 + [4] * 28 + [5] * 2, "B": [1] * 100})
    (ax,) = rank_stability(ranks).axes
    crosses = [line.get_ydata()[0] for line in ax.lines if line.get_marker() == "x"]
    intervals = [tuple(line.get_ydata()) for line in ax.lines if line.get_marker() != "x"]
    assert crosses == [3, 1]
    assert intervals == [(2, 4), (1, 1)]


def test_best_rank_is_at_the_top_and_models_are_in_order(ranks):
    """Fails if the winner is at the bottom or circles stand over another model's name."""
    (ax,) = rank_stability(ranks, models=["C", "A"]).axes
    bottom, top = ax.get_ylim()
    assert top < 1 < 3 < bottom
    assert tick_labels(ax) == ["C", "A"]
    assert blobs(ax).keys() == {(0, 3), (1, 1), (1, 2)}
    assert ax.get_ylabel() == "Rank (1 is best)"


def test_shared_ranks_and_missing_ranks():
    """Fails if the mean rank of a tie is rounded to a place, or samples without a rank take part in the shares."""
    (ax,) = rank_stability(pd.DataFrame({"A": [1.5, 1.5, 1, np.nan], "B": [1.5, 1.5, 2, np.nan]})).axes
    areas = blobs(ax)
    assert areas.keys() == {(0, 1.5), (0, 1), (1, 1.5), (1, 2)}
    assert areas[0, 1.5] == pytest.approx(2 * areas[0, 1])


def test_legend_shows_the_areas(ranks):
    """Fails if the circles of the legend are not of the size that the same share has in the picture."""
    figure = rank_stability(ranks)
    assert legend(figure) == ["10%", "50%", "100% of samples"]
    sizes = [line.get_markersize() ** 2 for line in figure.legends[0].get_lines()]
    np.testing.assert_allclose(sizes, blobs(figure.axes[0])[2, 3] * np.array([0.1, 0.5, 1]))


def test_neighbouring_circles_do_not_touch():
    """Fails if the circle of a sure rank covers its neighbour's: looked at for many models, which have little room."""
    n = 12
    figure = rank_stability(pd.DataFrame(np.tile(np.arange(1.0, n + 1), (5, 1)), columns=[f"m{i}" for i in range(n)]))
    figure.draw_without_rendering()
    (ax,) = figure.axes
    steps = np.abs(ax.transData.transform((1, 2)) - ax.transData.transform((0, 1))) * 72 / figure.dpi
    assert max(blobs(ax).values()) ** 0.5 < min(steps)


def test_no_ranks_are_refused(ranks):
    """Fails if an empty table gives an empty picture."""
    with pytest.raises(ValueError, match="nothing to draw"):
        rank_stability(ranks * np.nan)
    with pytest.raises(ValueError, match="no model 'Z'"):
        rank_stability(ranks, models=["Z"])


# ---- Dice against cost ----


def points(ax):
    """Cost and Dice of every point, in the order of the models."""
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if line.get_marker() != "None"]


def bars(ax):
    return [tuple(line.get_ydata()) for line in ax.lines if line.get_marker() == "None"]


def test_points_and_intervals():
    """Fails if a point or an interval is not where the table says, or the unit of the axis is not that of its label."""
    (ax,) = dice_against_cost(make_table(["A", "B"], [4e9, 9e9], [0.8, 0.9])).axes
    np.testing.assert_allclose(points(ax), [(4, 80), (9, 90)])
    np.testing.assert_allclose(bars(ax), [(78, 81), (88, 91)])
    assert ax.get_xlabel() == "Multiply-adds per image in billions"
    assert ax.get_ylabel() == "Dice in % (higher is better)"
    assert [text.get_text() for text in ax.texts] == ["A", "B"]


@pytest.mark.parametrize(
    ("cost", "value", "shown", "label"),
    [("parameters", 323e6, 323, "Parameters in millions"), ("seconds_per_epoch", 75.0, 75, "Seconds per epoch")],
)
def test_other_costs(cost, value, shown, label):
    """Fails if parameters are drawn under the label of multiply-adds, or seconds are scaled."""
    (ax,) = dice_against_cost(make_table(["A"], [value]).rename(columns={"multiply_adds": cost}), cost).axes
    assert points(ax) == [(pytest.approx(shown), pytest.approx(80))]
    assert ax.get_xlabel() == label


@pytest.mark.parametrize(("most", "scale"), [(9e9, "linear"), (11e9, "log")])
def test_axis_is_logarithmic_only_where_costs_are_far_apart(most, scale):
    """Fails if small networks are pressed together at the left, or close costs are pulled apart."""
    (ax,) = dice_against_cost(make_table(["A", "B"], [1e9, most])).axes
    assert ax.get_xscale() == scale


def test_models_of_unknown_cost_are_named():
    """Fails if a model disappears without a word, is drawn at zero, or takes its colour from the next one."""
    table = make_table(["A", "B", "C", "D"], [np.nan, 5e9, 6e9, 7e9], [0.8, 0.81, np.nan, 0.82])
    figure = dice_against_cost(table)
    (ax,) = figure.axes
    assert [x for x, _ in points(ax)] == [5, 7]
    assert figure._supxlabel.get_text() == "Not shown (unknown cost or Dice): A; C"
    colors = [line.get_color() for line in ax.lines if line.get_marker() != "None"]
    assert colors == [LABEL_COLORS[1], LABEL_COLORS[3]]


def test_equal_costs_stand_side_by_side():
    """Fails if two trainers of one network hide each other."""
    figure = dice_against_cost(make_table(["A", "B", "C"], [5e9, 5e9, 6e9]))
    figure.draw_without_rendering()
    markers = [line for line in figure.axes[0].lines if line.get_marker() != "None"]
    x = [line.get_transform().transform((line.get_xdata()[0], 0.8))[0] for line in markers]
    assert (x[1] - x[0]) * 72 / figure.dpi > 6
    assert [line.get_xdata()[0] for line in markers] == [5, 5, 6]


def test_costs_that_cannot_be_drawn_are_refused():
    """Fails if a wrong name or a table without costs gives an empty picture."""
    with pytest.raises(ValueError, match="'price'.*multiply_adds, seconds_per_epoch, parameters"):
        dice_against_cost(make_table(["A"], [1.0]), "price")
    with pytest.raises(ValueError, match="nothing to draw"):
        dice_against_cost(make_table(["A"], [np.nan]))


# ---- all of them ----


def figures(models):
    n = len(models)
    order = np.argsort(np.random.default_rng(0).normal(size=(50, n)), axis=1) + 1.0
    yield metric_by_structure(make_cases(models, n=4))
    yield metric_by_structure(make_cases(models, ["left_atrial_appendage", *"abcdefg"], n=4))
    yield rank_stability(pd.DataFrame(order, columns=models))
    yield dice_against_cost(make_table(models, np.geomspace(1e9, 1e12, n), np.linspace(0.7, 0.9, n)))
    yield dice_against_cost(make_table(models, [1e9, *[np.nan] * (n - 1)]))


@pytest.mark.slow
def test_type_is_readable():
    """Fails if letters are smaller than 7 or larger than 9 points where a paper prints the picture."""
    for figure in figures(LONG[:3]):
        texts = [text for ax in figure.axes for text in (ax.xaxis.label, ax.yaxis.label, *ax.texts)]
        texts += [label for ax in figure.axes for label in (*ax.get_xticklabels(), *ax.get_yticklabels())]
        texts += [text for found in figure.legends for text in found.get_texts()]
        assert {text.get_fontsize() for text in texts if text.get_text()} <= {7, 8, 9}


def drawn_text(pdf):
    """The letters that a PDF file draws as text."""
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.S)
    letters = b""
    for stream in streams:
        try:
            content = zlib.decompress(stream)
        except zlib.error:
            continue
        for strings in re.findall(rb"(\[[^\]]*\]\s*TJ|\([^)]*\)\s*Tj)", content):
            letters += b"".join(re.findall(rb"\(([^)]*)\)", strings)).replace(b"\0", b"") + b"\n"
    return letters.decode("latin-1")


def test_pdf_holds_text_as_text(tmp_path):
    """Fails if letters are outlines or fonts of type 3: the text cannot be searched, and journals refuse it."""
    paths = save_both(metric_by_structure(make_cases(["swinunet", "B"])), tmp_path / "new" / "fold_0.5epochs")
    assert [path.name for path in paths] == ["fold_0.5epochs.pdf", "fold_0.5epochs.png"]
    pdf = paths[0].read_bytes()
    assert pdf.startswith(b"%PDF") and paths[1].read_bytes().startswith(b"\x89PNG")
    assert b"/Type3" not in pdf and b"/FontFile2" in pdf
    assert {"swinunet", "Myo"} <= set(drawn_text(pdf).split("\n"))


@pytest.mark.slow
def test_drawing_needs_neither_pyplot_nor_a_display(tmp_path):
    """Fails if pyplot is loaded, or matplotlib is when the command line only imports the module."""
    code = (
        "import sys; from nnunet_din.plotting.scores import rank_stability; "
        "from nnunet_din.plotting.style import save_both; "
        "assert not {'matplotlib', 'pandas'} & set(sys.modules); import pandas; "
        "save_both(rank_stability(pandas.DataFrame({'A': [1, 2], 'B': [2, 1]})), sys.argv[1]); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "picture")], check=True)
    assert (tmp_path / "picture.pdf").exists()
