"""The enhanced version of an image file, as the image is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nnunet_din.data.files import refuse_overwriting
from nnunet_din.data.images import read_image, write_image
from nnunet_din.enhancement import enhance


def enhance_file(
    source: Path,
    target: Path,
    method: str = "fuzzy",
    axis: int | None = None,
    weights: Path | None = None,
    volumetric: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Enhance an image file.

    Parameters
    ----------
    source, target
        Files that SimpleITK reads and writes; 2-D, 3-D, or colour (three components) 2-D. Geometry is kept, pixels
        become float32 in (-1, 1).
    method
        A name of :data:`nnunet_din.enhancement.ENHANCEMENTS`.
    axis
        Slice axis of a volume in the order z, y, x; None: that of the largest spacing, as nnU-Net's 2-D configuration
        slices it.
    weights
        Weights of the method zero_dce, which needs them; no other method takes any.
    volumetric
        Whether a volume is enhanced as a whole; for the methods of :data:`nnunet_din.enhancement.VOLUMETRIC`.

    Returns
    -------
    numpy.ndarray, numpy.ndarray
        Slices of the image, and their enhanced versions, shapes ``(C, slices, H, W)``.

    Raises
    ------
    FileNotFoundError
        If ``source`` does not exist.
    ValueError
        If it cannot be read as an image, is not 2-D or 3-D, or has values that are not finite; or the method does not
        fit the weights or the number of axes.
    """
    refuse_overwriting([target], [source, *([weights] if weights else ())])
    if (method == "zero_dce") != (weights is not None):
        raise ValueError(
            "The method zero_dce needs --weights FILE, which `nnunet-din train-zero-dce` writes; no other does."
        )
    parameters: dict[str, Any] = {}
    if weights:
        from nnunet_din.enhancement.zero_dce import zero_dce_parameters  # loads torch

        parameters = zero_dce_parameters(weights)
    image = read_image(source)
    axis = image.slice_axis if image.flat or axis is None else axis
    slices = np.moveaxis(image.array.astype(np.float32), axis + 1, 1)
    try:
        enhanced = enhance(slices, image.color, method=method, volumetric=volumetric and not image.flat, **parameters)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    write_image(target, np.moveaxis(enhanced, 1, axis + 1), source)
    return slices, enhanced
