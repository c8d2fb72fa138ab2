"""Pictures beside stored ones: nothing is cut off, runs into its neighbour or is too small to read.

Stored pictures were looked at. After a change that is meant, write them again and look at them::

    pytest tests/test_pictures.py --mpl-generate-path=tests/baseline
"""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from packaging.version import Version

from nnunet_din.plotting.curves import training_curves
from nnunet_din.plotting.panel import panel
from nnunet_din.plotting.scores import dice_against_cost, metric_by_structure, rank_stability

#: An older matplotlib sets letters with another FreeType, and its pictures differ everywhere.
pytestmark = pytest.mark.skipif(
    Version(matplotlib.__version__) < Version("3.11"), reason="the stored pictures are of matplotlib 3.11"
)
LONG = [f"nnUNetTrainerDIN_variant{i}__nnUNetDINPlansNumber{i}__2d" for i in range(9)]
# Versions of matplotlib set letters a little differently; a name that moves by its own height gives more than 10.
compared = pytest.mark.mpl_image_compare(
    baseline_dir="baseline", tolerance=5, style="default", savefig_kwargs={"dpi": 80}
)


def row(labels, **more):
    """One row of a panel: stripes of labels on a ramp."""
    label = (np.arange(480) * labels // 480).reshape(20, 24)
    image = np.linspace(0, 500, label.size).reshape(label.shape)
    return {"name": "case_000", "image": image, "enhanced": image / 251 - 1, "truth": label, **more}


def scores(models, structures=("RV", "Myo", "LV"), cases=6):
    """Scores that differ by model, structure and case."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        [
            {"model": model, "fold": "0", "case": f"case_{k}", "structure": structure}
            for model in models
            for structure in structures
            for k in range(cases)
        ]
    )
    dice = 0.9 - 0.1 * rng.beta(2, 5, len(table))
    return table.assign(Dice=dice, NSD=dice, HD95=20 * (1 - dice), truth_empty=False, prediction_empty=False)


def costs(models):
    """Dice and multiply-adds of models."""
    rng = np.random.default_rng(0)
    value, dice = rng.uniform((1e9, 0.7), (2e10, 0.8), (len(models), 2)).T
    low, high = dice - 0.02, dice + 0.01
    return pd.DataFrame(
        {"model": models, "multiply_adds": value, "Dice_mean": dice, "Dice_low": low, "Dice_high": high}
    )


@pytest.mark.slow
@compared
def test_panel_of_three_models_with_long_names_and_many_labels():
    name = "nnUNetTrainerDIN_noBoundaryLoss__nnUNetDINAttoPlans__2d"
    rows = [row(8, name=f"case, slice 3: Dice {name} 0.900; {name}x 0.900; {name}y 0.900")] * 2
    rows = [{**each, "predictions": {name + end: each["truth"] for end in ("", "x", "y")}} for each in rows]
    return panel(rows, {value: f"a structure of the number {value}" for value in range(1, 8)})


@compared
def test_panel_with_a_legend_of_two_even_rows_and_thick_slices():
    return panel([row(9, aspect=0.5)], {n: f"structure {n}" for n in range(1, 9)})


@compared
def test_boxes_of_nine_models_with_long_names():
    return metric_by_structure(scores(LONG))


@compared
def test_boxes_of_structures_with_long_names():
    return metric_by_structure(scores(LONG[:2], ["left_atrial_appendage", *"abcdefg"]))


@compared
def test_distances_with_a_missed_structure():
    table = scores(["DIN", "nnU-Net"])
    table.loc[0, ["Dice", "NSD", "HD95"]] = 0, 0, 330
    table.loc[0, "prediction_empty"] = True
    return metric_by_structure(table, "HD95")


@pytest.mark.slow
@compared
def test_ranks_of_nine_models():
    order = np.argsort(np.random.default_rng(0).normal(size=(50, len(LONG))), axis=1) + 1.0
    return rank_stability(pd.DataFrame(order, columns=LONG))


@compared
def test_dice_of_nine_models_against_their_cost():
    table = costs(LONG)
    table.loc[4, "multiply_adds"] = np.nan
    return dice_against_cost(table)


@compared
def test_curves_of_two_models():
    number = np.arange(20)
    folds = [
        {
            "epoch": number, "hours": (number + 1) / 100, "train_loss": -number / (10 + k), "val_loss": -number / 20,
            "dice": 1 - 1 / (number + 1 + k), "learning_rate": 1e-2 * (1 - number / 20) ** 0.9,
        }
        for k in range(3)
    ]  # fmt: skip
    return training_curves({LONG[0]: folds[:2], LONG[1]: folds[2:]})
