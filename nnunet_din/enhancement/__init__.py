"""Image enhancement: from the original image I to its enhanced version E, the second input of the network.

Each method has a file of its own and a line in :data:`ENHANCEMENTS`, and, if it has a form for whole volumes, one in
:data:`VOLUMETRIC`. A method is a function of slices in (-1, 1)::

    method(f, *, color, mask, **parameters) -> array like f, in (-1, 1)

with ``f`` of shape ``(..., H, W)`` (``(..., C, H, W)`` where ``color`` is true) and a ``mask`` of shape ``(..., H, W)``
or None. Its volumetric form has ``Z, H, W`` for ``H, W``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from nnunet_din.data.names import check_known
from nnunet_din.enhancement.fuzzy import fuzzy_enhance, fuzzy_enhance_volume, fuzzy_membership
from nnunet_din.enhancement.histogram import adaptive_histogram_equalize, histogram_equalize
from nnunet_din.enhancement.intensity import smooth, to_unit_interval


def _zero_dce(f, **parameters):
    """:func:`nnunet_din.enhancement.zero_dce.zero_dce_enhance`; torch is not loaded for the other methods."""
    from nnunet_din.enhancement.zero_dce import zero_dce_enhance

    return zero_dce_enhance(f, **parameters)


#: Name in the plans -> function.
ENHANCEMENTS: dict[str, Callable] = {
    "fuzzy": fuzzy_enhance,
    "he": histogram_equalize,
    "clahe": adaptive_histogram_equalize,
    "zero_dce": _zero_dce,
}

#: The same of those that have a form for volumes.
VOLUMETRIC: dict[str, Callable] = {"fuzzy": fuzzy_enhance_volume}

__all__ = [
    "ENHANCEMENTS",
    "VOLUMETRIC",
    "adaptive_histogram_equalize",
    "enhance",
    "enhance_slices",
    "fuzzy_enhance",
    "fuzzy_enhance_volume",
    "fuzzy_membership",
    "get_enhancement",
    "histogram_equalize",
    "to_unit_interval",
]


def get_enhancement(method: str) -> Callable:
    """Return the enhancement function called ``method``.

    Raises
    ------
    ValueError
        If there is none; the message lists the known names.
    """
    check_known("enhancement", method, ENHANCEMENTS)
    return ENHANCEMENTS[method]


def enhance(
    data: np.ndarray,
    color: bool = False,
    mask: np.ndarray | None = None,
    method: str = "fuzzy",
    percentiles: Sequence[float] = (0.5, 99.5),
    limit: float = 0.99,
    volumetric: bool = False,
    smoothing: float = 0.0,
    **parameters,
) -> np.ndarray:
    """Enhance a volume as the plans say: each whole slice along the last two axes on its own, or all of it at once.

    Parameters
    ----------
    data
        Intensities of any scale, finite, shape ``(C, Z, H, W)``.
    color
        Whether the C channels are the colours of one image (enhanced by luminosity, mapped to (-1, 1) together) or
        independent.
    mask
        Foreground, shape ``(Z, H, W)``: statistics come from its voxels only. None: all voxels.
    method
        A name of :data:`ENHANCEMENTS`; where ``volumetric``, of :data:`VOLUMETRIC`.
    percentiles, limit
        See :func:`to_unit_interval`.
    volumetric
        Whether the volume is enhanced as a whole: for voxels whose edges are near equal.
    smoothing
        Standard deviation in voxels of a Gaussian that comes first, along the axes that are enhanced together: an
        enhancement of contrast is also one of noise. 0 is none.
    **parameters
        Passed to the method.

    Returns
    -------
    numpy.ndarray
        Enhanced volume, shape and (floating) dtype of ``data``, values in (-1, 1). A slice (volume) without foreground
        is 0.

    Raises
    ------
    ValueError
        Unknown method, or one of slices only where volumes are asked for; wrong shape, or values that are not finite.
    """
    function = get_enhancement(method)
    if volumetric:
        if method not in VOLUMETRIC:
            raise ValueError(
                f"Enhancement '{method}' works slice by slice only. Methods for whole volumes: {', '.join(VOLUMETRIC)}."
            )
        function = VOLUMETRIC[method]
    if data.ndim != 4:
        raise ValueError(f"Expected data of shape (C, Z, H, W), got {data.shape}.")
    out = np.zeros(data.shape, np.result_type(data.dtype, np.float32))
    if smoothing:
        data = smooth(data, smoothing, mask, axes=3 if volumetric else 2)
    for channels in [slice(None)] if color else [slice(c, c + 1) for c in range(len(data))]:
        f = to_unit_interval(data[channels], percentiles=percentiles, limit=limit, mask=mask)
        # Slices one at a time: their temporaries stay in the cache.
        for z in [slice(None)] if volumetric else range(data.shape[1]):
            foreground = None if mask is None else mask[z]
            if foreground is None or foreground.any():
                out[channels, z] = function(f[:, z], color=color, mask=foreground, **parameters)
    return out


def enhance_slices(data: np.ndarray, **arguments) -> np.ndarray:
    """Enhance slice by slice: :func:`enhance` without ``volumetric``."""
    return enhance(data, volumetric=False, **arguments)
