"""From intensities of any scale to (-1, 1), the range on which the enhancement works."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


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
        In (0, 1).
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
