"""What a row of a comparison shows: the Dice, the slice, the window and the boxes."""

from __future__ import annotations

import numpy as np
import pytest

from nnunet_din.enhancement import enhance_slices
from nnunet_din.evaluation.metrics import mean_dice
from nnunet_din.plotting.selection import crop_window, difference_boxes, disagreement, make_row


def truth_volume(shape=(4, 32, 40)):
    """A structure inside another, in all slices but the first."""
    label = np.zeros(shape, np.uint8)
    label[1:, 8:24, 10:26] = 1
    label[1:, 12:20, 14:22] = 2
    return label


def test_dice_counts_what_is_missed_and_false_alarms():
    """Fails if a structure that only one of prediction and truth has costs nothing, or one that neither has counts."""
    truth = truth_volume()
    one = np.where(truth == 2, 0, truth)
    alarm = one.copy()
    alarm[0, :3, :3] = 2
    assert mean_dice(truth, truth) == mean_dice(one, one, {"a": (1,), "b": (2,)}) == 1
    assert mean_dice(one, truth) == mean_dice(alarm, one) == 0.5
    assert np.isnan(mean_dice(np.zeros_like(truth), np.zeros_like(truth)))


def test_dice_knows_regions_and_ignored_voxels():
    """Fails if a region is scored by one of its values, or voxels that do not count do."""
    truth = truth_volume()
    # The whole (both values) is right and the inner part is missing.
    assert mean_dice(np.minimum(truth, 1), truth, {"whole": (1, 2), "inner": (2,)}) == pytest.approx(0.5)
    ignored = truth.copy()
    ignored[:, :, 30:] = 9
    assert mean_dice(np.where(ignored == 9, 1, truth), ignored, ignore=9) == 1


def test_disagreement_is_between_models_and_with_one_model_from_the_truth():
    """Fails if the truth decides although models are compared, or a single model never differs."""
    truth = np.zeros((2, 3), int)
    one, other = np.eye(2, 3, dtype=int), np.eye(2, 3, dtype=int)
    assert not disagreement([one, other], truth).any()
    np.testing.assert_array_equal(disagreement([one], truth), one > 0)
    np.testing.assert_array_equal(disagreement([one, other, truth], one), one > 0)
    assert not disagreement([one]).any()


@pytest.mark.parametrize(
    ("shape", "foreground", "aspect", "expected"),
    [
        ((100, 120), (slice(40, 60), slice(50, 80)), 1.0, (slice(29, 71), slice(44, 86))),
        ((30, 120), (slice(10, 14), slice(0, 20)), 5.0, (slice(9, 15), slice(0, 30))),  # a square in millimetres
        ((100, 100), (50, 50), 1.0, (slice(40, 60), slice(40, 60))),  # no magnifying glass
        ((6, 8), (slice(0), slice(0)), 1.0, (slice(0, 6), slice(0, 8))),
    ],
)
def test_window_is_a_square_with_a_margin_around_the_foreground(shape, foreground, aspect, expected):
    """Fails if the picture is not centred on what is labelled, cuts it off, or leaves the image."""
    label = np.zeros(shape, bool)
    label[foreground] = True
    assert crop_window(label, aspect) == expected


def test_boxes_enclose_the_largest_differences():
    """Fails if a box lies elsewhere, or a smaller difference is framed before a larger one."""
    different = np.zeros((64, 64), bool)
    different[5:9, 5:9] = True
    different[40:50, 30:45] = True
    different[30:36, 5:11] = True
    assert difference_boxes(different, 1) == [(38, 28, 52, 47)]
    assert difference_boxes(different, 2) == [(38, 28, 52, 47), (28, 3, 38, 13)]
    assert len(difference_boxes(different, 9)) == 3
    assert difference_boxes(different, 0) == []
    assert difference_boxes(np.zeros((8, 8), bool), 3) == []


def test_boxes_join_neighbours_and_do_not_overlap():
    """Fails if one region with a gap of a pixel gets two boxes, or boxes lie on each other."""
    different = np.zeros((64, 64), bool)
    different[10:14, 10:14] = different[10:14, 15:19] = True
    assert difference_boxes(different, 2) == [(8, 8, 16, 21)]
    different = np.zeros((64, 64), bool)
    different[10:20, 10:20] = different[23:27, 10:14] = True
    assert difference_boxes(different, 2) == [(8, 8, 22, 22)]


def test_box_does_not_frame_a_whole_outline():
    """Fails if a rim that is one pixel wide, as between any two models, draws the box around the whole organ."""
    different = np.zeros((64, 64), bool)
    different[10:50, 10:50] = True
    different[11:49, 11:49] = False
    different[28:32, 46:50] = True
    assert difference_boxes(different, 1) == [(26, 44, 34, 52)]
    # Thicker rims too, where the frame of everything would fill the picture.
    different[10:50, 10:50] = True
    different[13:47, 13:47] = False
    different[28:34, 44:50] = True
    assert difference_boxes(different, 1) == [(26, 42, 36, 52)]


def test_thin_differences_are_framed_where_there_is_nothing_else():
    """Fails if small differences are found nowhere."""
    different = np.zeros((64, 64), bool)
    different[20, 30:33] = True
    assert difference_boxes(different, 1) == [(18, 28, 23, 35)]


def test_row_shows_the_slice_and_the_place_where_models_differ_most():
    """Fails if slice, box and crop do not belong together."""
    truth = truth_volume()
    wrong = truth.copy()
    wrong[3, 8:24, 26:31] = 1
    wrong[1, 8:10, 26:28] = 1
    image = np.random.default_rng(0).random((1, *truth.shape))
    row = make_row(image, {"a": truth, "b": wrong}, truth, crop=False)
    assert row["index"] == 3
    ((top, left, bottom, right),) = row["boxes"]
    assert top <= 8 and bottom >= 24 and 22 < left <= 26 and 31 <= right < 35
    cropped = make_row(image, {"a": truth, "b": wrong}, truth)
    ((top, left, bottom, right),) = cropped["boxes"]
    inside = cropped["predictions"]["b"][top:bottom, left:right] != cropped["predictions"]["a"][top:bottom, left:right]
    assert inside.sum() == 16 * 5
    assert cropped["image"].shape == cropped["enhanced"].shape == cropped["truth"].shape < row["image"].shape


def test_row_without_differences_shows_most_foreground():
    """Fails if equal predictions give the first, empty slice or a box around nothing."""
    truth = truth_volume()
    truth[2, :8] = 1
    row = make_row(np.random.default_rng(0).random((1, *truth.shape)), {"a": truth}, truth)
    assert row["index"] == 2 and row["boxes"] == []


def test_row_enhances_as_the_whole_volume_is_enhanced():
    """Fails if the picture shows another enhanced image than `nnunet-din enhance` writes."""
    image = np.random.default_rng(0).gamma(4, 50, (1, 4, 32, 40)).astype(np.float32)
    image[0, 3] *= 3
    row = make_row(image, {"a": truth_volume()}, index=3, crop=False)
    np.testing.assert_allclose(row["enhanced"], enhance_slices(image)[0, 3])


def test_row_takes_ignored_voxels_for_no_difference():
    """Fails if the slice or the box is chosen by voxels that nobody labelled, or they are drawn as a structure."""
    truth = truth_volume()
    truth[2] = 9
    prediction = truth_volume()
    prediction[3, 0:6, 0:6] = 1
    row = make_row(np.random.default_rng(0).random((1, *truth.shape)), {"a": prediction}, truth, ignore=9)
    assert row["index"] == 3 and row["truth"].max() == 2
