"""The enhancements: what every method promises, fuzzy enhancement's literal twin, intensities, smoothing, plans."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.ndimage
import SimpleITK as sitk
import torch

import literal
from nnunet_din.commands.main import main
from nnunet_din.enhancement import (
    ENHANCEMENTS,
    enhance,
    enhance_slices,
    fuzzy_enhance,
    fuzzy_enhance_volume,
    to_unit_interval,
)
from nnunet_din.enhancement.intensity import smooth


def image(shape=(17, 23), seed=0):
    rng = np.random.default_rng(seed)
    smooth = np.cumsum(np.cumsum(rng.normal(size=shape), axis=-1), axis=-2)
    return 0.9 * smooth / np.abs(smooth).max()


def intensities(*shape):
    return np.random.default_rng(0).gamma(2, 100, size=shape).astype(np.float32)


@pytest.mark.parametrize("method", [ENHANCEMENTS[name] for name in sorted(set(ENHANCEMENTS) - {"zero_dce"})])
class TestMethod:
    """What holds for every method; Zero-DCE, which needs weights, has tests of its own."""

    @pytest.mark.parametrize("color", [False, True])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_shape_range_and_dtype(self, method, color, dtype):
        """Fails if a value reaches +-1, where phi is infinite."""
        f = np.clip(np.random.default_rng(0).normal(size=(2, 3, 20, 24)), -0.99, 0.99).astype(dtype)
        e = method(f, color=color)
        assert e.shape == f.shape and e.dtype == dtype and np.abs(e).max() < 1

    def test_slices_are_independent(self, method):
        f = np.stack([image(seed=s) for s in range(4)]).reshape(2, 2, 17, 23)
        np.testing.assert_allclose(method(f)[1, 0], method(f[1, 0]), atol=1e-12)

    def test_grey_colours_stay_grey(self, method):
        f = image()
        np.testing.assert_allclose(method(np.stack([f] * 3), color=True), np.stack([method(f)] * 3), atol=1e-6)

    @pytest.mark.parametrize("value", [-0.99, 0.0, 0.3])
    def test_constant_slices_are_zero(self, method, value):
        """Fails if noise of the last digit is stretched over the whole range, or a warning reaches the user."""
        noise = np.random.default_rng(0).normal(size=(16, 12))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for f in (np.full((16, 12), value), value + 1e-8 * noise):
                np.testing.assert_allclose(method(f), 0, atol=1e-4)
            np.testing.assert_allclose(method(np.stack([f, f, f]), color=True), 0, atol=1e-4)

    @pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 17)])
    def test_small_slices(self, method, shape):
        assert np.isfinite(method(image(shape))).all()

    def test_rows_are_no_colours(self, method):
        with pytest.raises(ValueError, match="C, H, W"):
            method(image(), color=True)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("shape", "orders", "gamma"),
    [
        ((9, 11), (2, 2), 1.0),
        ((9, 11), (0, 0), 1.0),
        ((9, 11), (4, 1), 0.5),
        ((1, 11), (1, 2), 2.0),
        ((5, 8, 9), (2, 2, 2), 1.0),
        ((5, 8, 9), (1, 2, 3), 2.0),
        ((1, 8, 9), (0, 1, 0), 0.5),
    ],
)
def test_fuzzy_enhancement_equals_the_literal_definition(shape, orders, gamma, masked):
    f, mask = image(shape), image(shape, seed=1) > -0.2 if masked else None
    volumetric = len(shape) == 3
    expected = literal.fuzzy_enhance(f, *orders[:2], gamma, mask=mask, p=orders[2] if volumetric else None)
    result = (fuzzy_enhance_volume if volumetric else fuzzy_enhance)(f, *orders, gamma=gamma, mask=mask)
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_fuzzy_enhancement_is_invariant_to_affine_maps_in_phi_with_zero_mean():
    g = np.arctanh(image())
    e = fuzzy_enhance(np.tanh(g))
    np.testing.assert_allclose(fuzzy_enhance(np.tanh(0.7 * g - 0.4)), e, atol=1e-8)
    assert abs(np.arctanh(e).mean()) < 1e-9


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize(("function", "size"), [(fuzzy_enhance, (17, 23)), (fuzzy_enhance_volume, (6, 17, 23))])
def test_torch_equals_numpy_and_fp32_is_close(function, size, color):
    f, mask = image((2, 3, *size)), image((2, *size) if color else (2, 3, *size), seed=1) > -0.3
    expected = function(f, color=color, mask=mask)
    result = function(torch.from_numpy(f), color=color, mask=torch.from_numpy(mask))
    assert isinstance(result, torch.Tensor) and result.dtype == torch.float64
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(function(f.astype(np.float32), color=color, mask=mask), expected, atol=5e-6)


def test_color_applies_one_affine_map_to_all_channels():
    """Per pixel, differences between channels in phi are all stretched by the same factor."""
    f = np.stack([image(seed=s) for s in range(3)])
    before, after = np.arctanh(f), np.arctanh(fuzzy_enhance(f, color=True))
    np.testing.assert_allclose(
        (after[0] - after[1]) * (before[1] - before[2]), (after[1] - after[2]) * (before[0] - before[1]), atol=1e-9
    )


@pytest.mark.parametrize("parameters", [{"m": -1}, {"gamma": 0}, {"sigma_u": -1}, {"s_min": 0}])
def test_parameters_out_of_range_are_refused(parameters):
    with pytest.raises(ValueError, match=f"{next(iter(parameters))}.*must|must.*{next(iter(parameters))}"):
        fuzzy_enhance(image(), **parameters)


# ---- intensities ----


def test_unit_interval_is_robust_and_bounded():
    data = np.random.default_rng(0).normal(100, 20, size=(2, 5, 30, 30))
    data[0, 0, 0, 0] = 1e6
    f = to_unit_interval(data)
    assert np.abs(f).max() <= 0.99 and f[0, 0, 0, 0] == pytest.approx(0.99)
    assert f.std() > 0.2, "one outlier must not squeeze the rest"


def test_unit_interval_takes_percentiles_from_the_mask():
    data = np.array([[0.0] * 50, [1.0, 2.0] * 25])
    f = to_unit_interval(data, percentiles=(0, 100), mask=data > 0)
    np.testing.assert_allclose(f[1, :2], [-0.99, 0.99])


@pytest.mark.parametrize(
    ("last", "parameters", "message"),
    [
        (np.nan, {}, "1 of 4 values are NaN or infinite"),
        (np.inf, {}, "1 of 4 values are NaN or infinite"),
        (4, {"percentiles": (5, 5)}, "must"),
        (4, {"percentiles": (-1, 50)}, "must"),
        (4, {"limit": 1.0}, "must"),
    ],
)
def test_unit_interval_refuses(last, parameters, message):
    with pytest.raises(ValueError, match=message):
        to_unit_interval(np.array([1.0, 2.0, 3.0, last]), **parameters)


# ---- smoothing ----


@pytest.mark.parametrize("volumetric", [False, True])
def test_smoothing_comes_before_everything_else(volumetric):
    volume = np.random.default_rng(0).normal(size=(2, 5, 12, 9))
    sigmas = (0, 1.5 * volumetric, 1.5, 1.5)
    smoothed = scipy.ndimage.gaussian_filter(volume, sigmas, mode="nearest")
    expected = enhance(smoothed, volumetric=volumetric)
    np.testing.assert_allclose(enhance(volume, smoothing=1.5, volumetric=volumetric), expected, atol=1e-12)


def test_what_is_outside_the_mask_is_not_smoothed_into_it():
    rng = np.random.default_rng(0)
    mask = np.zeros((2, 12, 9), bool)
    mask[:, 2:9, 1:7] = True
    volume = rng.normal(size=(1, 2, 12, 9))
    other = np.where(mask, volume, 100 * rng.normal(size=volume.shape))
    results = [enhance(v, mask=mask, smoothing=1.0)[:, mask] for v in (volume, other)]
    np.testing.assert_allclose(*results, atol=1e-12)
    np.testing.assert_allclose(smooth(np.full(volume.shape, 3.0), 2.0, mask), 3.0)


# ---- as the plans say ----


def test_slices_are_enhanced_one_by_one_and_whole():
    data, mask = intensities(2, 3, 20, 24), np.ones((3, 20, 24), bool)
    mask[1] = False
    e = enhance_slices(data, mask=mask)
    assert e.shape == data.shape and e.dtype == np.float32
    f = to_unit_interval(data[1:2], mask=mask)
    np.testing.assert_allclose(e[1, 2], fuzzy_enhance(f[0, 2]), atol=1e-6)
    assert e[:, 0].any() and not e[:, 1].any(), "a slice without foreground"


def test_plans_say_whether_a_volume_is_enhanced_as_a_whole():
    data = intensities(2, 6, 9, 11)
    mask = data[0] > 50
    np.testing.assert_array_equal(enhance(data, mask=mask, m=1), enhance_slices(data, mask=mask, m=1))
    whole = enhance(data, volumetric=True, mask=mask, p=1)
    f = to_unit_interval(data[1:], mask=mask)[0].astype(np.float64)
    np.testing.assert_allclose(whole[1], literal.fuzzy_enhance(f, mask=mask, p=1), atol=1e-5)
    assert not enhance(data, volumetric=True, mask=mask & False).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "clahee"}, "Unknown enhancement 'clahee'.*fuzzy"),
        ({"volumetric": True, "method": "he"}, "'he' works slice by slice only. Methods for whole volumes: fuzzy"),
        ({"volumetric": True, "p": -1}, "must not be negative, got m=2, n=2, p=-1"),
    ],
)
def test_plans_that_ask_for_what_is_not_there_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        enhance(intensities(1, 2, 8, 8), **arguments)


@pytest.mark.parametrize("name", ["fuzzy", "he", "clahe"])
def test_enhance_command(name, tmp_path):
    """Fails if the command does not know the method or writes something else than the preprocessor would see."""
    data = intensities(3, 20, 24)
    volume = sitk.GetImageFromArray(data)
    volume.SetSpacing((1, 1, 5))
    sitk.WriteImage(volume, str(tmp_path / "in.nii.gz"))
    assert main(["enhance", str(tmp_path / "in.nii.gz"), str(tmp_path / "out.nii.gz"), "--method", name]) == 0
    result = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.nii.gz")))
    np.testing.assert_allclose(result, enhance_slices(data[None], method=name)[0], atol=1e-6)


def test_importing_the_enhancements_is_quick():
    """Fails if the command line loads torch or scikit-image before a method needs it."""
    code = "import sys, nnunet_din.enhancement; assert not {'torch', 'skimage.exposure'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
