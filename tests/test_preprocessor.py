"""The preprocessor: same image in training and prediction, nnU-Net's channels untouched, masks, colour, bad input."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_din.enhancement import enhance_slices
from nnunet_din.planners.din_preprocessor import DINPreprocessor


@pytest.fixture
def setting(dataset, plans):
    manager = PlansManager(plans)
    return manager, manager.get_configuration("2d"), dataset.dataset_json


def volume(seed=0, shape=(1, 3, 40, 36)):
    return np.random.default_rng(seed).gamma(4, 50, size=shape).astype(np.float32)


def run(setting, data, seg=None, spacing=(10, 1.5, 1.5), cls=DINPreprocessor):
    # with the data set's own spacing nothing is resampled
    manager, config, dataset_json = setting
    spacing = [spacing[0], *config.spacing] if spacing == (10, 1.5, 1.5) else list(spacing)
    return cls(verbose=False).run_case_npy(data, seg, {"spacing": spacing}, manager, config, dataset_json)


def test_training_and_prediction_see_the_same_image(dataset, setting):
    """The stored training case against the case as nnU-Net's predictor prepares it, voxel by voxel."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    manager, config, dataset_json = setting
    stored = nnUNetDatasetBlosc2(str(dataset.preprocessed / config.data_identifier))
    for case in stored.identifiers:
        trained = stored.load_case(case)[0][:]
        image = str(dataset.raw / "imagesTr" / f"{case}_0000.nii.gz")
        predicted, _, _ = config.preprocessor_class(verbose=False).run_case(
            [image], None, manager, config, dataset_json
        )
        assert trained.shape[0] == 2
        np.testing.assert_array_equal(trained, predicted.astype(np.float32))


@pytest.mark.parametrize("masked", [False, True])
def test_labels_do_not_change_the_image(setting, masked):
    """Also where labels lie outside the nonzero region and the image is resampled."""
    setting[1].configuration["use_mask_for_norm"] = [masked]
    data = volume()
    data[:, :, :12] = 0
    seg = np.zeros(data.shape, np.int8)
    seg[:, :, 8:20, 5:20] = 2
    spacing = (10, setting[1].spacing[0] * 1.3, setting[1].spacing[1] * 0.8)
    with_seg, without = (run(setting, data, s, spacing)[0] for s in (seg, None))
    np.testing.assert_array_equal(with_seg[1:], without[1:])


def test_original_channels_are_nnunets(setting):
    data, seg = volume(), np.zeros((1, 3, 40, 36), np.int8)
    ours, _, _ = run(setting, data, seg)
    stock, _, _ = run(setting, data, seg, cls=DefaultPreprocessor)
    np.testing.assert_array_equal(ours[:1], stock)
    np.testing.assert_array_equal(ours[1:], enhance_slices(stock, **setting[1].configuration["enhancement"]))


def test_numbers_come_from_the_plans(setting):
    data = volume()
    before = run(setting, data)[0]
    setting[1].configuration["enhancement"]["m"] = 4
    after = run(setting, data)[0]
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1] - after[1]).max() > 0.01


def test_several_enhancements_follow_each_other(setting):
    """Originals, then the versions in the order of the plans."""
    data = volume()
    first = setting[1].configuration["enhancement"]
    alone = run(setting, data)[0]
    second = {**first, "m": 0, "n": 0}
    setting[1].configuration["enhancement"] = [first, second]
    both = run(setting, data)[0]
    np.testing.assert_array_equal(both[:2], alone)
    np.testing.assert_array_equal(both[2:], enhance_slices(both[:1], **second))
    setting[1].configuration["enhancement"] = "fuzzy"
    with pytest.raises(ValueError, match="must be an object with a `method`, or a list of them, not fuzzy"):
        run(setting, data)


def test_outside_the_mask_is_zero_and_does_not_count(setting):
    setting[1].configuration["use_mask_for_norm"] = [True]
    data = volume()
    inside = np.zeros(data.shape, bool)
    inside[:, :, 8:32, 6:30] = True
    data[~inside] = 0
    data[:, 0, 0, 0] = data[:, -1, -1, -1] = 1  # keep nnU-Net from cropping
    result = run(setting, data)[0]
    outside = ~inside[0]
    outside[0, 0, 0] = outside[-1, -1, -1] = False
    assert not result[1][outside].any() and result[1][inside[0]].std() > 0.1


def test_two_channels_give_four(setting):
    setting[1].configuration.update(normalization_schemes=["ZScoreNormalization"] * 2, use_mask_for_norm=[False] * 2)
    setting[0].plans["foreground_intensity_properties_per_channel"]["1"] = setting[0].plans[
        "foreground_intensity_properties_per_channel"
    ]["0"]
    setting = (*setting[:2], {**setting[2], "channel_names": {"0": "T1", "1": "T2"}})
    result = run(setting, volume(shape=(2, 3, 40, 36)))[0]
    assert result.shape == (4, 3, 40, 36)
    np.testing.assert_array_equal(result[2:3], enhance_slices(result[:1], **setting[1].configuration["enhancement"]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinite_voxels_are_refused(setting, bad):
    data = volume()
    data[0, 1, 2, :3] = bad
    with pytest.raises(ValueError, match=r"Channel 0 has 3 NaN or infinite voxels of 4320.*numpy.nan_to_num"):
        run(setting, data)


@pytest.mark.parametrize("bad", [0.0, -3.0, np.nan, np.inf])
def test_impossible_spacing_is_refused(setting, bad):
    """The file with the spacing of a TIFF volume may hold anything."""
    with pytest.raises(ValueError, match="spacing of the image is .* must be positive"):
        run(setting, volume(), spacing=(bad, 1, 1))


def test_the_error_names_the_image(dataset, setting, tmp_path):
    import SimpleITK as sitk

    data = volume()[0]
    data[0, 0, 0] = np.nan
    path = str(tmp_path / "case_0000.nrrd")  # ITK's NIfTI reader turns NaN into 0
    sitk.WriteImage(sitk.GetImageFromArray(data), path)
    with pytest.raises(ValueError, match="case_0000.nrrd: Channel 0 has 1 NaN"):
        DINPreprocessor(verbose=False).run_case([path], None, *setting)


def test_constant_image_warns_and_goes_on(setting):
    with pytest.warns(UserWarning, match="is constant: its enhanced version is 0"):
        result = run(setting, np.full((1, 3, 40, 36), 5.0))[0]
    assert np.isfinite(result).all() and not result[1].any()


def test_empty_slice_warns_and_goes_on(setting):
    data = volume()
    data[:, 1] = 0
    with pytest.warns(UserWarning, match="1 of 3 slices are constant or empty"):
        result = run(setting, data)[0]
    assert np.isfinite(result).all() and not np.ptp(result[1, 1]) and result[1, 0].std() > 0.1


def test_image_smaller_than_an_attention_window(setting):
    result = run(setting, volume(shape=(1, 1, 3, 2)))[0]
    assert result.shape == (2, 1, 3, 2) and np.isfinite(result).all()


def test_plans_without_enhancement_are_refused(setting):
    del setting[1].configuration["enhancement"]
    with pytest.raises(ValueError, match="-pl nnUNetPlannerDIN"):
        run(setting, volume())


def test_labels_that_cannot_be_trained_on_are_refused_before_any_case(dataset, plans, nnunet_folders):
    """Also where the plans come from another data set, and no planner has seen the labels."""
    raw, preprocessed = (folder / "Dataset995_Moved" for folder in (nnunet_folders.raw, nnunet_folders.preprocessed))
    for folder in (raw, preprocessed):
        folder.mkdir()
    description = {**dataset.dataset_json, "labels": {"background": 0, "a": 1, "b": 3}}
    (raw / "dataset.json").write_text(json.dumps(description))
    try:
        with pytest.raises(ValueError, match="must be consecutive"):
            DINPreprocessor(verbose=False).run(raw.name, "2d", plans["plans_name"], 1)
    finally:
        for folder in (raw, preprocessed):
            shutil.rmtree(folder)


def test_unknown_enhancement_is_refused(setting):
    setting[1].configuration["enhancement"]["method"] = "magic"
    with pytest.raises(ValueError, match="Unknown enhancement 'magic'. Known: fuzzy"):
        run(setting, volume())


@pytest.mark.slow
def test_color_images_from_png(nnunet_folders):
    """Natural RGB images: planned, preprocessed with one luminosity for the three channels."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from skimage import io

    from nnunet_dataset import preprocess, write_fingerprint
    from nnunet_din.planners.din_planners import nnUNetPlannerDINAtto

    name = "Dataset997_TestColor"
    raw = nnunet_folders.raw / name
    rng = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for case in range(2):
        label = np.zeros((48, 40), np.uint8)
        label[10:30, 12:28] = 1
        image = rng.integers(0, 120, (48, 40, 3)) + 100 * label[..., None]
        io.imsave(raw / "imagesTr" / f"polyp{case}_0000.png", image.astype(np.uint8), check_contrast=False)
        io.imsave(raw / "labelsTr" / f"polyp{case}.png", label, check_contrast=False)
    dataset_json = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "polyp": 1},
        "numTraining": 2,
        "file_ending": ".png",
    }
    (raw / "dataset.json").write_text(json.dumps(dataset_json))
    write_fingerprint(raw, nnunet_folders.preprocessed / name)
    plans = nnUNetPlannerDINAtto(name).plan_experiment()
    config = plans["configurations"]["2d"]
    assert list(plans["configurations"]) == ["2d"] and config["enhancement"]["color"] is True
    preprocess(name, plans)
    data = nnUNetDatasetBlosc2(str(nnunet_folders.preprocessed / name / config["data_identifier"])).load_case("polyp0")[
        0
    ][:]
    assert data.shape == (6, 1, 48, 40)
    np.testing.assert_allclose(data[3:], enhance_slices(data[:3], **config["enhancement"]), atol=1e-6)
