"""The fuzzy enhancement: its exact properties, its literal twin, its edge cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import torch

import literal
from nnunet_din.enhancement import (
    ENHANCEMENTS,
    enhance,
    enhance_slices,
    fuzzy_enhance,
    fuzzy_enhance_volume,
    fuzzy_membership,
    to_unit_interval,
)
from nnunet_din.enhancement.intensity import smooth

SIGMA_U = math.sqrt(1 / 3)


def image(shape=(17, 23), seed=0):
    rng = np.random.default_rng(seed)
    smooth = np.cumsum(np.cumsum(rng.normal(size=shape), axis=-1), axis=-2)
    return 0.9 * smooth / np.abs(smooth).max()


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("m", "n"), [(0, 0), (1, 2), (2, 2), (4, 1)])
def test_equals_the_literal_definition(m, n, gamma):
    f = image()
    expected = literal.fuzzy_enhance(f, m, n, gamma)
    np.testing.assert_allclose(fuzzy_enhance(f, m, n, gamma), expected, atol=1e-6)


def test_equals_the_literal_definition_with_mask():
    f, mask = image(), image(seed=1) > -0.2
    np.testing.assert_allclose(fuzzy_enhance(f, mask=mask), literal.fuzzy_enhance(f, mask=mask), atol=1e-6)


def test_membership_sums_to_one():
    w = fuzzy_membership(50, order=3, gamma=1.7)
    assert w.shape == (4, 50)
    np.testing.assert_allclose(w.sum(axis=0), 1, atol=1e-12)
    assert fuzzy_membership(1, order=2).shape == (3, 1)


def test_phi_of_the_result_has_zero_mean():
    assert abs(np.arctanh(fuzzy_enhance(image())).mean()) < 1e-9


def test_one_window_is_the_z_score():
    g = np.arctanh(image())
    np.testing.assert_allclose(
        np.arctanh(fuzzy_enhance(np.tanh(g), m=0, n=0)), SIGMA_U * (g - g.mean()) / g.std(), atol=1e-9
    )


@pytest.mark.parametrize(("a", "b"), [(0.3, 0.0), (1.0, 0.5), (0.7, -0.4)])
def test_invariant_to_affine_maps_in_phi(a, b):
    g = np.arctanh(image())
    np.testing.assert_allclose(fuzzy_enhance(np.tanh(a * g + b)), fuzzy_enhance(np.tanh(g)), atol=1e-8)


@pytest.mark.parametrize("value", [-0.99, 0.0, 0.3, 0.99])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_image_gives_zero(value, dtype):
    np.testing.assert_allclose(
        fuzzy_enhance(np.full((12, 9), value, dtype)), 0, atol=1e-4 if dtype == np.float32 else 1e-9
    )


def test_fp32_is_close_to_fp64():
    f = image((224, 224))
    np.testing.assert_allclose(fuzzy_enhance(f.astype(np.float32)), fuzzy_enhance(f), atol=5e-6)


@pytest.mark.parametrize("color", [False, True])
def test_torch_equals_numpy(color):
    f = np.stack([image(seed=s) for s in range(6)]).reshape(2, 3, 17, 23)
    mask = np.stack([image(seed=s) for s in range(2)]) > 0 if color else f > -0.3
    expected = fuzzy_enhance(f, color=color, mask=mask)
    result = fuzzy_enhance(torch.from_numpy(f), color=color, mask=torch.from_numpy(mask))
    assert isinstance(result, torch.Tensor) and result.dtype == torch.float64
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-12)


def test_batch_is_independent():
    f = np.stack([image(seed=s) for s in range(4)]).reshape(2, 2, 17, 23)
    np.testing.assert_allclose(fuzzy_enhance(f)[1, 0], fuzzy_enhance(f[1, 0]), atol=1e-12)


def test_color_of_grey_is_grey():
    f = image()
    np.testing.assert_allclose(
        fuzzy_enhance(np.stack([f] * 3), color=True), np.stack([fuzzy_enhance(f)] * 3), atol=1e-12
    )


def test_color_applies_one_affine_map_to_all_channels():
    # Per pixel, differences between channels in phi must all be stretched by the same factor.
    f = np.stack([image(seed=s) for s in range(3)])
    before, after = np.arctanh(f), np.arctanh(fuzzy_enhance(f, color=True))
    np.testing.assert_allclose(
        (after[0] - after[1]) * (before[1] - before[2]), (after[1] - after[2]) * (before[0] - before[1]), atol=1e-9
    )


@pytest.mark.parametrize("kwargs", [{"m": -1}, {"gamma": 0}, {"sigma_u": -1}, {"s_min": 0}])
def test_parameters_out_of_range(kwargs):
    with pytest.raises(ValueError, match="must"):
        fuzzy_enhance(image(), **kwargs)


def test_wrong_number_of_axes():
    with pytest.raises(ValueError, match="C, H, W"):
        fuzzy_enhance(image(), color=True)


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


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_unit_interval_refuses_values_that_are_not_finite(bad):
    with pytest.raises(ValueError, match="1 of 4 values are NaN or infinite"):
        to_unit_interval(np.array([1.0, 2.0, 3.0, bad]))


@pytest.mark.parametrize("kwargs", [{"percentiles": (5, 5)}, {"percentiles": (-1, 50)}, {"limit": 1.0}])
def test_unit_interval_parameters_out_of_range(kwargs):
    with pytest.raises(ValueError, match="must"):
        to_unit_interval(np.arange(10.0), **kwargs)


def test_slices_are_enhanced_one_by_one_and_whole():
    data = np.random.default_rng(0).gamma(2, 100, size=(2, 3, 20, 24)).astype(np.float32)
    e = enhance_slices(data)
    assert e.shape == data.shape and e.dtype == np.float32
    expected = fuzzy_enhance(to_unit_interval(data[1:2])[0, 2])
    np.testing.assert_allclose(e[1, 2], expected, atol=1e-6)


def test_slices_of_a_constant_volume_and_without_foreground_are_zero():
    assert not enhance_slices(np.full((1, 2, 8, 8), 7.0)).any()
    data = np.random.default_rng(0).normal(size=(1, 2, 16, 16))
    mask = np.ones((2, 16, 16), bool)
    mask[1] = False
    e = enhance_slices(data, mask=mask)
    assert e[0, 0].any() and not e[0, 1].any()


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


def test_unknown_method_lists_the_known_ones():
    with pytest.raises(ValueError, match="Unknown enhancement 'clahee'.*fuzzy"):
        enhance_slices(np.zeros((1, 1, 8, 8)), method="clahee")


@pytest.mark.parametrize("name", sorted(set(ENHANCEMENTS) - {"zero_dce"}))
@pytest.mark.parametrize("color", [False, True])
def test_every_enhancement_keeps_shape_and_range(name, color):
    data = np.random.default_rng(0).gamma(2, 100, size=(3, 2, 15, 18)).astype(np.float32)
    e = enhance_slices(data, color=color, method=name)
    assert e.shape == data.shape and np.isfinite(e).all() and np.abs(e).max() < 1


# ---- volumes ----


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("orders", "gamma"), [((2, 2, 2), 1.0), ((1, 2, 3), 2.0), ((0, 1, 0), 0.5)])
def test_volume_equals_the_literal_definition(orders, gamma, masked):
    f = image((5, 8, 9))
    mask = image((5, 8, 9), seed=1) > -0.2 if masked else None
    m, n, p = orders
    expected = literal.fuzzy_enhance(f, m, n, gamma, mask=mask, p=p)
    np.testing.assert_allclose(fuzzy_enhance_volume(f, *orders, gamma, mask=mask), expected, atol=1e-6)


def test_a_volume_of_equal_slices_is_enhanced_as_its_slice():
    f = image()
    for depth in (1, 4):
        enhanced = fuzzy_enhance_volume(np.stack([f] * depth), m=1, n=3)
        np.testing.assert_allclose(enhanced, np.stack([fuzzy_enhance(f, m=1, n=3)] * depth), atol=1e-9)


def test_phi_of_an_enhanced_volume_has_zero_mean_and_a_constant_one_is_zero():
    assert abs(np.arctanh(fuzzy_enhance_volume(image((7, 17, 23)))).mean()) < 1e-9
    np.testing.assert_allclose(fuzzy_enhance_volume(np.full((3, 4, 5), 0.7)), 0, atol=1e-9)


@pytest.mark.parametrize("color", [False, True])
def test_torch_equals_numpy_in_volumes_and_fp32_is_close(color):
    f = image((2, 3, 6, 17, 23)) if color else image((2, 6, 17, 23))
    mask = image((2, 6, 17, 23), seed=1) > -0.3
    expected = fuzzy_enhance_volume(f, color=color, mask=mask)
    result = fuzzy_enhance_volume(torch.from_numpy(f), color=color, mask=torch.from_numpy(mask))
    assert isinstance(result, torch.Tensor) and result.dtype == torch.float64
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-12)
    single = fuzzy_enhance_volume(f.astype(np.float32), color=color, mask=mask)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, atol=5e-6)


def test_plans_say_whether_a_volume_is_enhanced_as_a_whole():
    data = np.random.default_rng(0).gamma(2, 100, size=(2, 6, 9, 11)).astype(np.float32)
    mask = data[0] > 50
    np.testing.assert_array_equal(enhance(data, mask=mask, m=1), enhance_slices(data, mask=mask, m=1))
    whole = enhance(data, volumetric=True, mask=mask, p=1)
    f = to_unit_interval(data[1:], mask=mask)[0].astype(np.float64)
    np.testing.assert_allclose(whole[1], literal.fuzzy_enhance(f, mask=mask, p=1), atol=1e-5)
    assert not enhance(data, volumetric=True, mask=mask & False).any()
    with pytest.raises(ValueError, match="'he' works slice by slice only. Methods for whole volumes: fuzzy"):
        enhance(data, volumetric=True, method="he")
    with pytest.raises(ValueError, match=r"must not be negative, got m=2, n=2, p=-1"):
        enhance(data, volumetric=True, p=-1)
    with pytest.raises(ValueError, match=r"Expected \(\.\.\., C, Z, H, W\)"):
        fuzzy_enhance_volume(data[0], color=True)
