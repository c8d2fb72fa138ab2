"""Metrics against shapes whose values are known, and against two other libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nnunet_din.evaluation.metrics import diagonal, merit_metrics, structure_metrics

SPACING = (8.0, 1.5, 0.75)


def ball(centre, radius, shape=(12, 40, 64), spacing=SPACING):
    """Voxels whose centres lie in a ball, in mm."""
    grid = np.stack(np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"), -1)
    return ((grid - np.asarray(centre)) ** 2).sum(-1) <= radius**2


def box(low, high, shape=(12, 40, 64)):
    """Voxels from ``low`` to ``high``, the end excluded."""
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


PAIRS = {
    "shifted balls": (ball((44, 30, 24), 20), ball((44, 33, 21), 18)),
    "at the border": (ball((0, 0, 0), 30), ball((0, 3, 0), 26)),
    "far apart": (ball((10, 8, 8), 7), ball((70, 45, 40), 7)),
    "equal": (ball((44, 30, 24), 20), ball((44, 30, 24), 20)),
    "one voxel": (box((3, 3, 3), (4, 4, 4)), box((5, 9, 3), (6, 10, 4))),
    "a hole": (ball((44, 30, 24), 20) & ~ball((44, 30, 24), 8), ball((44, 30, 24), 20)),
}


@pytest.mark.parametrize(("axis", "shift"), [(0, 2), (1, 3), (2, 5)])
def test_shifted_box_by_hand(axis, shift):
    """Fails if the spacing is ignored or applied to the wrong axis."""
    low, high = np.array([2, 10, 12]), np.array([6, 30, 48])
    truth = box(low, high)
    offset = np.eye(3, dtype=int)[axis] * shift
    prediction = box(low + offset, high + offset)
    result = structure_metrics(prediction, truth, SPACING, tolerance=shift * SPACING[axis] + 0.01)
    edge = (high - low)[axis]
    assert result["Dice"] == pytest.approx((edge - shift) / edge)
    # The farthest face makes up more than 5 % of the surface, and lies at the whole shift.
    assert result["HD95"] == pytest.approx(shift * SPACING[axis])
    assert result["NSD"] == 1
    below = structure_metrics(prediction, truth, SPACING, tolerance=shift * SPACING[axis] - 0.01)
    assert below["NSD"] < 1
    assert result["truth_ml"] == pytest.approx(truth.sum() * math.prod(SPACING) / 1000)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("pair", PAIRS)
def test_against_surface_distance(pair):
    """HD95 and NSD in mm, as DeepMind's library computes them: it weighs surfaces by area, MONAI's HD95 by voxel."""
    surface_distance = pytest.importorskip("surface_distance")
    prediction, truth = PAIRS[pair]
    theirs = surface_distance.compute_surface_distances(truth, prediction, SPACING)
    result = structure_metrics(prediction, truth, SPACING, tolerance=2.0)
    assert result["Dice"] == pytest.approx(surface_distance.compute_dice_coefficient(truth, prediction))
    assert result["NSD"] == pytest.approx(
        surface_distance.compute_surface_dice_at_tolerance(theirs, tolerance_mm=2.0), abs=1e-4
    )
    if pair != "a hole":  # 5 % of its surface: on one side of the percentile by voxels, on the other by area
        hausdorff = surface_distance.compute_robust_hausdorff(theirs, 95)
        assert result["HD95"] == pytest.approx(hausdorff, abs=0.5)


@pytest.mark.parametrize("pair", PAIRS)
def test_against_medpy(pair):
    """The published protocol is MedPy's; HD95 of MONAI is the larger of its two directions, in mm."""
    metric = pytest.importorskip("medpy.metric.binary")
    surface_distances = vars(metric)["__surface_distances"]
    prediction, truth = PAIRS[pair]
    merit = merit_metrics(prediction, truth)
    assert merit["Dice_merit"] == pytest.approx(metric.dc(prediction, truth))
    assert merit["HD95_merit"] == pytest.approx(metric.hd95(prediction, truth), rel=1e-5)
    directed = [
        np.percentile(surface_distances(*masks, SPACING), 95) for masks in ((prediction, truth), (truth, prediction))
    ]
    assert structure_metrics(prediction, truth, SPACING)["HD95"] == pytest.approx(max(directed), rel=1e-5)


def test_two_dimensional_image_and_volume_of_one_slice():
    """Fails if every pixel of a single slice counts as surface."""
    truth, prediction = ball((44, 30, 24), 20)[5], ball((44, 33, 24), 20)[5]
    flat = structure_metrics(prediction, truth, SPACING[1:])
    volume = structure_metrics(prediction[None], truth[None], SPACING)
    assert {k: v for k, v in flat.items() if not k.endswith("_ml")} == {
        k: v for k, v in volume.items() if not k.endswith("_ml")
    }
    assert flat["truth_ml"] == pytest.approx(truth.sum() * 1.5 * 0.75 / 100)
    assert flat["HD95"] < 4


def test_policy_for_empty_masks():
    """A missed structure and a false alarm cost the most there is; what neither has is not counted."""
    mask, empty = ball((44, 30, 24), 20), np.zeros((12, 40, 64), dtype=bool)
    worst = math.hypot(11 * 8, 39 * 1.5, 63 * 0.75)
    assert diagonal(mask.shape, SPACING) == pytest.approx(worst)
    for prediction, truth in ((empty, mask), (mask, empty)):
        result = structure_metrics(prediction, truth, SPACING)
        assert (result["Dice"], result["NSD"]) == (0, 0) and result["HD95"] == pytest.approx(worst)
        assert result["truth_empty"] == (not truth.any()) and result["prediction_empty"] == (not prediction.any())
    neither = structure_metrics(empty, empty, SPACING)
    assert all(math.isnan(neither[key]) for key in ("Dice", "HD95", "NSD"))


def test_merit_protocol_for_empty_masks():
    """The published code rewards a false alarm and punishes a structure that is rightly absent."""
    mask, empty = np.ones((2, 3, 4), dtype=bool), np.zeros((2, 3, 4), dtype=bool)
    dice = [merit_metrics(*masks)["Dice_merit"] for masks in ((mask, empty), (empty, mask), (empty, empty))]
    assert dice == [1, 0, 0]
