"""What comes before the enhancement: less noise, and from intensities of any scale to (-1, 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter


def smooth(data: np.ndarray, sigma: float, mask: np.ndarray | None = None, axes: int = 2) -> np.ndarray:
    """Smooth by a Gaussian along the last axes.

    Parameters
    ----------
    data
        Intensities, shape ``(C, Z, H, W)``.
    sigma
        Standard deviation of the Gaussian in voxels, > 0.
    mask
        Boolean, shape ``(Z, H, W)``: only its voxels enter the averages and are smoothed. None: all.
    axes
        Number of axes, 2 or 3.

    Returns
    -------
    numpy.ndarray
        Shape of ``data``, floating dtype.

    Raises
    ------
    ValueError
        If ``sigma`` is not positive.
    """
    if not sigma > 0:
        raise ValueError(f"The smoothing must be positive, got {sigma}.")
    data = data.astype(np.result_type(data.dtype, np.float32), copy=False)
    sigmas = (0.0,) * (data.ndim - axes) + (sigma,) * axes
    if mask is None:
        return gaussian_filter(data, sigmas, mode="nearest")
    mask = np.broadcast_to(mask, data.shape)
    share = gaussian_filter(mask.astype(data.dtype), sigmas, mode="nearest")
    total = gaussian_filter(data * mask, sigmas, mode="nearest")
    return np.divide(total, share, out=data.copy(), where=mask)


def to_unit_interval(
    data: np.ndarray,
    percentiles: Sequence[float] = (0.5, 99.5),
    limit: float = 0.99,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Map intensities linearly to ``[-limit, limit]`` by robust percentiles, and clip.

    The clip stays away from +-1, where ``atanh`` diverges: a background at +-1 would dominate every mean and variance
    of the enhancement and crush the foreground.

    Parameters
    ----------
    data
        Intensities, any shape and scale, finite.
    percentiles
        Lower and upper percentile (0 to 100) of ``data`` that become ``-limit`` and ``limit``.
    limit
        Largest absolute value of the result, in (0, 1).
    mask
        Boolean, broadcastable to ``data``: percentiles come from its voxels only. None, or nothing set: all voxels.

    Returns
    -------
    numpy.ndarray
        Shape of ``data``, floating dtype, values in ``[-limit, limit]``; 0 everywhere if the percentiles coincide (a
        constant image).

    Raises
    ------
    ValueError
        If ``data`` holds NaN or infinite values, or the parameters are out of range.
    """
    lower, upper = percentiles
    if not 0 <= lower < upper <= 100:
        raise ValueError(f"percentiles must satisfy 0 <= lower < upper <= 100, got {percentiles}.")
    if not 0 < limit < 1:
        raise ValueError(f"limit must lie in (0, 1), got {limit}.")
    data = np.asarray(data)
    data = data.astype(np.result_type(data.dtype, np.float32), copy=False)
    if not np.isfinite(data).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(data))} of {data.size} values are NaN or infinite.")
    inside = data if mask is None or not np.any(mask) else data[np.broadcast_to(mask, data.shape)]
    low, high = np.percentile(inside, percentiles).tolist()
    if not high > low:
        return np.zeros_like(data)
    return np.clip((data - low) * (2 * limit / (high - low)) - limit, -limit, limit)


#: The planners' mapping of intensities to (-1, 1): arguments of :func:`to_unit_interval`.
INTENSITIES: dict[str, Any] = {"percentiles": [0.5, 99.5], "limit": 0.99}
