"""Histogram equalization (HE) and its contrast-limited adaptive form (CLAHE), by scikit-image.

Both work on one luminosity per slice, mapped linearly from (-1, 1) to (0, 1) and back. Colours follow it by addition in
phi = atanh, the addition of the fuzzy enhancement: luminosity is tanh of the channels' mean phi, and each channel gets
what the luminosity got. So the result stays in (-1, 1), grey stays grey, and its luminosity is the equalized one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_EDGE = 1 - 1e-6
_FLAT = 1e-6  # range of the values below which a slice counts as constant


def histogram_equalize(
    f: np.ndarray, n_bins: int = 256, color: bool = False, mask: np.ndarray | None = None
) -> np.ndarray:
    """Equalize the histogram of each slice.

    Parameters
    ----------
    f
        Images in (-1, 1), floating, shape ``(..., H, W)``, or ``(..., C, H, W)`` where ``color`` is true. NumPy only.
    n_bins
        Bins of the histogram, 2 or more.
    color
        Whether axis -3 holds the colours of one image: they are changed together, by their luminosity.
    mask
        Foreground, shape ``(..., H, W)``, boolean or 0/1 numbers: only its pixels enter the histogram. All pixels are
        mapped.

    Returns
    -------
    numpy.ndarray
        E in (-1, 1), shape and dtype of ``f``; uniformly distributed over the foreground. A slice whose foreground is
        constant or empty is 0.

    Raises
    ------
    ValueError
        If a parameter is out of range, or ``f`` has too few axes.
    """
    from skimage.exposure import equalize_hist

    _check(f, n_bins, color)
    return _by_luminosity(lambda image, inside: equalize_hist(image, n_bins, inside), f, color, mask)


def adaptive_histogram_equalize(
    f: np.ndarray,
    clip_limit: float = 0.01,
    kernel_size: float | None = None,
    n_bins: int = 256,
    color: bool = False,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Equalize histograms of the neighbourhood, with limited contrast (CLAHE).

    Parameters
    ----------
    f
        Images in (-1, 1), floating, shape ``(..., H, W)``, or ``(..., C, H, W)`` where ``color`` is true. NumPy only.
    clip_limit
        Share of a neighbourhood's pixels that one bin may hold, in (0, 1]: larger gives more contrast, 1 is without a
        limit.
    kernel_size
        Height and width of a neighbourhood as a share of the slice's, in (0, 1]. None: scikit-image's 1/8.
    n_bins
        Bins of the histograms, 2 or more.
    color
        Whether axis -3 holds the colours of one image: they are changed together, by their luminosity.
    mask
        Not used: scikit-image's histograms are of all pixels of a neighbourhood. It is here because all enhancements
        are called alike.

    Returns
    -------
    numpy.ndarray
        E in (-1, 1), shape and dtype of ``f``; each slice fills the range. A constant slice is 0.

    Raises
    ------
    ValueError
        If a parameter is out of range, or ``f`` has too few axes.
    """
    from skimage.exposure import equalize_adapthist

    _check(f, n_bins, color)
    if not 0 < clip_limit <= 1:
        raise ValueError(f"clip_limit must lie in (0, 1], got {clip_limit}.")
    if kernel_size is not None and not 0 < kernel_size <= 1:
        raise ValueError(f"kernel_size is a share of the slice and must lie in (0, 1], got {kernel_size}.")
    kernel = [max(int(kernel_size * side), 1) for side in f.shape[-2:]] if kernel_size else None
    return _by_luminosity(lambda image, _: equalize_adapthist(image, kernel, clip_limit, n_bins), f, color, None)


def _check(f: np.ndarray, n_bins: int, color: bool) -> None:
    if n_bins < 2:
        raise ValueError(f"n_bins must be at least 2, got {n_bins}.")
    if f.ndim < 2 + color:
        raise ValueError(f"Expected {'(..., C, H, W)' if color else '(..., H, W)'}, got shape {f.shape}.")


def _by_luminosity(
    equalize: Callable[[np.ndarray, np.ndarray], np.ndarray], f: np.ndarray, color: bool, mask: np.ndarray | None
) -> np.ndarray:
    """Equalize the luminosity of each slice, and change its channels by as much.

    ``equalize`` takes a slice in (0, 1) and its foreground, both ``(H, W)``, and gives the new slice in [0, 1]. A slice
    whose foreground is constant or empty becomes 0.
    """
    phi = np.arctanh(np.clip(f.astype(np.float64), -_EDGE, _EDGE))
    grey = phi.mean(axis=-3) if color else phi
    luminosity = np.tanh(grey) if color else f
    foreground = np.ones(luminosity.shape, bool) if mask is None else np.broadcast_to(mask, luminosity.shape) > 0
    out = np.zeros(f.shape, np.float64)
    for index in np.ndindex(luminosity.shape[:-2]):
        values = luminosity[index][foreground[index]]
        if not values.size or np.ptp(values) < 2 * _FLAT:
            continue
        equalized = np.clip(2 * equalize((luminosity[index] + 1) / 2, foreground[index]) - 1, -_EDGE, _EDGE)
        out[index] = np.tanh(phi[index] + np.arctanh(equalized) - grey[index])
    return np.clip(out, -_EDGE, _EDGE).astype(f.dtype)
