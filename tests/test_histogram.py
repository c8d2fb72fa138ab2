"""HE and CLAHE: what histogram equalization promises, scikit-image's own result, colours, masks and edge cases."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import SimpleITK as sitk
from skimage.exposure import equalize_adapthist

from nnunet_din.commands.main import main
from nnunet_din.enhancement import adaptive_histogram_equalize, enhance_slices, histogram_equalize

BOTH = pytest.mark.parametrize("method", [histogram_equalize, adaptive_histogram_equalize])


def image(shape=(48, 64), seed=0):
    """Dark with a few bright pixels, in (-1, 1)."""
    return np.random.default_rng(seed).beta(1.5, 6, size=shape) * 1.9 - 0.95


def test_he_gives_a_uniform_distribution():
    """Fails if the result is not the cumulative histogram on the whole of (-1, 1)."""
    e = histogram_equalize(image())
    counts = np.histogram(e, bins=8, range=(-1, 1))[0]
    np.testing.assert_allclose(counts / e.size, 1 / 8, atol=0.02)


def test_he_leaves_a_ramp_a_ramp():
    """Fails if an image whose grey values are all equally frequent is changed by more than a bin."""
    ramp = np.linspace(-0.99, 0.99, 64 * 64).reshape(64, 64)
    np.testing.assert_allclose(histogram_equalize(ramp), ramp / 0.99, atol=3 / 256)


def test_he_keeps_the_order_of_grey_values():
    """Fails if a brighter pixel becomes darker than another."""
    f = image()
    e = histogram_equalize(f).ravel()[np.argsort(f, axis=None)]
    assert (np.diff(e) >= 0).all()


def test_he_takes_the_histogram_from_the_foreground():
    """Fails if a large background enters the histogram, or is left as it was."""
    f = np.full((48, 96), -0.99)
    f[:, 48:] = image((48, 48))
    mask = f > -0.98
    e = histogram_equalize(f, mask=mask)
    np.testing.assert_allclose(np.histogram(e[mask], bins=4, range=(-1, 1))[0] / mask.sum(), 1 / 4, atol=0.03)
    assert e[~mask].max() <= e[mask].min()
    assert histogram_equalize(f)[mask].min() > -0.1, "without the mask the foreground has the upper half only"


def test_numbers_serve_as_a_mask_for_all_channels():
    """Fails if a mask of zeros and ones selects by index, or does not reach every channel."""
    f, mask = np.stack([image(seed=1), image(seed=2)]), image(seed=3) > -0.6
    np.testing.assert_array_equal(
        histogram_equalize(f, mask=mask.astype(np.uint8)),
        np.stack([histogram_equalize(channel, mask=mask) for channel in f]),
    )


@pytest.mark.parametrize(
    ("kwargs", "theirs"),
    [
        ({}, {}),
        (
            {"clip_limit": 0.2, "kernel_size": 0.25, "n_bins": 64},
            {"clip_limit": 0.2, "kernel_size": (12, 16), "nbins": 64},
        ),
    ],
)
def test_clahe_is_that_of_scikit_image(kwargs, theirs):
    """Fails if the range is mapped otherwise or a parameter does not arrive; kernel sizes are shares of each side."""
    f = image()
    expected = 2 * equalize_adapthist((f + 1) / 2, **theirs) - 1
    np.testing.assert_allclose(adaptive_histogram_equalize(f, **kwargs), expected, atol=1e-6)


def test_clahe_raises_local_contrast():
    """Fails if contrast in a dark region beside a bright one stays as low as it was."""
    f = image((64, 64)) * 0.05 - 0.6
    f[:, 32:] += 1.2
    e = adaptive_histogram_equalize(f, clip_limit=0.05)
    assert e[:, :28].std() > 4 * f[:, :28].std()


@BOTH
@pytest.mark.parametrize("value", [-0.99, 0.0, 0.3])
def test_constant_slices_are_zero(method, value):
    """Fails if noise of the last digit is stretched over the whole range, or a warning reaches the user."""
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for f in (np.full((16, 12), value), value + 1e-8 * rng.normal(size=(16, 12))):
            assert not method(f).any()
        assert not method(np.stack([f, f + 0.1, f - 0.005]), color=True).any()


def test_he_without_contrast_in_the_foreground_is_zero():
    """Fails if a constant or empty foreground gives a division by zero."""
    f = image()
    assert not histogram_equalize(f, mask=np.zeros(f.shape, bool)).any()
    f[:10] = 0.5
    assert not histogram_equalize(f, mask=np.arange(48)[:, None] < 10).any()


@BOTH
@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_range_and_dtype(method, color, dtype):
    """Fails if a value reaches +-1, where phi is infinite, or the dtype changes."""
    f = np.clip(np.random.default_rng(0).normal(size=(2, 3, 20, 24)), -0.99, 0.99).astype(dtype)
    e = method(f, color=color)
    assert e.shape == f.shape and e.dtype == dtype and np.abs(e).max() < 1


@BOTH
def test_slices_are_independent(method):
    """Fails if the histogram of one slice reaches another one."""
    f = np.stack([image(seed=s) for s in range(4)]).reshape(2, 2, 48, 64)
    np.testing.assert_array_equal(method(f)[1, 0], method(f[1, 0]))


@BOTH
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (3, 17)])
def test_small_slices(method, shape):
    """Fails if a slice smaller than eight pixels has no neighbourhoods."""
    assert np.isfinite(method(image(shape))).all()


@BOTH
def test_grey_colours_stay_grey(method):
    """Fails if an image without colours is enhanced otherwise in colour mode."""
    f = image()
    np.testing.assert_allclose(method(np.stack([f] * 3), color=True), np.stack([method(f)] * 3), atol=1e-6)


@BOTH
def test_colours_follow_their_luminosity(method):
    """Fails if the channels do not all change by the same in phi, or their luminosity is not the equalized one."""
    f = np.stack([image(seed=s) for s in range(3)])
    before, after = np.arctanh(f), np.arctanh(method(f, color=True))
    seen = np.abs(after).max(axis=0) < 6  # elsewhere the result is limited
    assert seen.mean() > 0.9
    change = (after - before)[:, seen]
    np.testing.assert_allclose(change, np.broadcast_to(change[0], change.shape), atol=1e-6)
    expected = method(np.tanh(before.mean(axis=0)))
    np.testing.assert_allclose(np.tanh(after.mean(axis=0))[seen], expected[seen], atol=1e-6)


@pytest.mark.parametrize(
    ("method", "kwargs"),
    [
        (histogram_equalize, {"n_bins": 1}),
        (adaptive_histogram_equalize, {"n_bins": 0}),
        (adaptive_histogram_equalize, {"clip_limit": 0}),
        (adaptive_histogram_equalize, {"clip_limit": 2}),
        (adaptive_histogram_equalize, {"kernel_size": 0}),
        (adaptive_histogram_equalize, {"kernel_size": 8}),
    ],
)
def test_parameters_out_of_range(method, kwargs):
    """Fails if a wrong number in the plans is taken, for example a kernel in pixels for a share."""
    with pytest.raises(ValueError, match=f"{next(iter(kwargs))}.* must .* got {next(iter(kwargs.values()))}"):
        method(image(), **kwargs)


@BOTH
def test_wrong_number_of_axes(method):
    """Fails if rows are taken for colours."""
    with pytest.raises(ValueError, match="C, H, W"):
        method(image(), color=True)


@pytest.mark.parametrize("name", ["he", "clahe"])
def test_enhance_command(name, tmp_path):
    """Fails if the command does not know the method or writes something else than the preprocessor would see."""
    data = np.random.default_rng(0).gamma(4, 50, size=(3, 20, 24)).astype(np.float32)
    volume = sitk.GetImageFromArray(data)
    volume.SetSpacing((1, 1, 5))
    sitk.WriteImage(volume, str(tmp_path / "in.nii.gz"))
    assert main(["enhance", str(tmp_path / "in.nii.gz"), str(tmp_path / "out.nii.gz"), "--method", name]) == 0
    result = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.nii.gz")))
    np.testing.assert_allclose(result, enhance_slices(data[None], method=name)[0], atol=1e-6)


def test_importing_the_enhancements_is_quick():
    """Fails if the command line loads torch or scikit-image before a method needs it."""
    code = (
        "import sys, nnunet_din.enhancement; assert not {'torch', 'skimage.exposure'} & sys.modules.keys(), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
