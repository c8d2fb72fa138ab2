"""HE and CLAHE: what histogram equalization promises, scikit-image's own result, masks; the rest, test_enhancement."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.exposure import equalize_adapthist

from nnunet_din.enhancement import adaptive_histogram_equalize, histogram_equalize


def image(shape=(48, 64), seed=0):
    """Dark with a few bright pixels, in (-1, 1)."""
    return np.random.default_rng(seed).beta(1.5, 6, size=shape) * 1.9 - 0.95


def test_he_gives_a_uniform_distribution_and_keeps_the_order():
    """Fails if the result is not the cumulative histogram on the whole of (-1, 1)."""
    f = image()
    e = histogram_equalize(f)
    counts = np.histogram(e, bins=8, range=(-1, 1))[0]
    np.testing.assert_allclose(counts / e.size, 1 / 8, atol=0.02)
    assert (np.diff(e.ravel()[np.argsort(f, axis=None)]) >= 0).all()


def test_he_takes_the_histogram_from_the_foreground():
    """Fails if a large background enters the histogram, or is left as it was; the mask may be of numbers."""
    f = np.full((48, 96), -0.99)
    f[:, 48:] = image((48, 48))
    mask = f > -0.98
    e = histogram_equalize(f, mask=mask.astype(np.uint8))
    np.testing.assert_allclose(np.histogram(e[mask], bins=4, range=(-1, 1))[0] / mask.sum(), 1 / 4, atol=0.03)
    assert e[~mask].max() <= e[mask].min()
    assert histogram_equalize(f)[mask].min() > -0.1, "without the mask the foreground has the upper half only"


def test_he_without_contrast_in_the_foreground_is_zero():
    """Fails if a constant or empty foreground gives a division by zero."""
    f = image()
    assert not histogram_equalize(f, mask=np.zeros(f.shape, bool)).any()
    f[:10] = 0.5
    assert not histogram_equalize(f, mask=np.arange(48)[:, None] < 10).any()


@pytest.mark.parametrize(
    ("kwargs", "skimages"),
    [
        ({}, {}),
        (
            {"clip_limit": 0.2, "kernel_size": 0.25, "n_bins": 64},
            {"clip_limit": 0.2, "kernel_size": (12, 16), "nbins": 64},
        ),
    ],
)
def test_clahe_is_that_of_scikit_image(kwargs, skimages):
    """Fails if the range is mapped otherwise or a parameter does not arrive; kernel sizes are shares of each side."""
    f = image()
    expected = 2 * equalize_adapthist((f + 1) / 2, **skimages) - 1
    np.testing.assert_allclose(adaptive_histogram_equalize(f, **kwargs), expected, atol=1e-6)


@pytest.mark.parametrize("method", [histogram_equalize, adaptive_histogram_equalize])
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
        (adaptive_histogram_equalize, {"clip_limit": 2}),
        (adaptive_histogram_equalize, {"kernel_size": 8}),
    ],
)
def test_parameters_out_of_range(method, kwargs):
    """Fails if a wrong number in the plans is taken, for example a kernel in pixels for a share."""
    with pytest.raises(ValueError, match=f"{next(iter(kwargs))}.* must .* got {next(iter(kwargs.values()))}"):
        method(image(), **kwargs)
