"""Which slice and which parts of it tell most about the predictions of several models: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nnunet_din.enhancement import enhance_slices

__all__ = ["crop_window", "difference_boxes", "disagreement", "largest_slice", "make_row"]

_CROP_MARGIN = 0.2  # on each side, of the longer side of the foreground's box
_SMALLEST_CROP = 0.2  # of the longer side of the slice


def disagreement(predictions: Sequence[np.ndarray], truth: np.ndarray | None = None) -> np.ndarray:
    """Where several predictions are not all the same, or where a single one is wrong.

    Parameters
    ----------
    predictions
        One or more integer label maps of the same shape.
    truth
        True label map, looked at only where there is one prediction.

    Returns
    -------
    numpy.ndarray
        Boolean, shape of a prediction; all False for one prediction without a truth.
    """
    first, *others = predictions
    if not others and truth is not None:
        others = [truth]
    return np.any([other != first for other in others], axis=0) if others else np.zeros(first.shape, bool)


def crop_window(foreground: np.ndarray, aspect: float = 1.0) -> tuple[slice, slice]:
    """A square around the foreground of a slice, with a margin.

    Parameters
    ----------
    foreground
        Boolean, shape (H, W).
    aspect
        Height of a pixel divided by its width: the window is a square in millimetres.

    Returns
    -------
    tuple of slice
        Rows and columns. As far as the square does not fit into the slice it is cut. The whole slice if there is no
        foreground.
    """
    height, width = foreground.shape
    if not foreground.any():
        return slice(0, height), slice(0, width)
    ranges = [np.flatnonzero(foreground.any(axis=axis))[[0, -1]] for axis in (1, 0)]
    (top, bottom), (left, right) = ranges
    side = max((bottom - top + 1) * aspect, right - left + 1) * (1 + 2 * _CROP_MARGIN)
    side = max(side, _SMALLEST_CROP * max(height * aspect, width))
    window = []
    for low, high, length, size in ((top, bottom, side / aspect, height), (left, right, side, width)):
        length = min(int(np.ceil(length)), size)
        start = int(np.clip(round((low + high + 1 - length) / 2), 0, size - length))
        window.append(slice(start, start + length))
    return window[0], window[1]


def difference_boxes(different: np.ndarray, number: int = 1) -> list[tuple[int, int, int, int]]:
    """Frames around the largest regions of disagreement in a slice.

    Rims one or two pixels thin are left out where there is anything thicker: nearly every outline differs by that much.
    What remains is dilated a little, so that neighbouring spots count as one region. While the largest region's frame
    would take more than a quarter of the slice, and so point at nothing, thicker and thicker rims are left out. Regions
    are ranked by the pixels that differ in them, equal ones from top to bottom; a frame that would overlap a larger one
    is left out.

    Parameters
    ----------
    different
        Boolean, shape (H, W).
    number
        Largest number of frames.

    Returns
    -------
    list of tuple of int
        (top, left, bottom, right) in pixels, upper bounds not included.
    """
    from scipy import ndimage

    boxes: list[tuple[int, int, int, int]] = []
    thinnest = next((n for n in (3, 2) if ndimage.binary_opening(different, np.ones((n, n))).any()), 1)
    for thickness in range(thinnest, min(different.shape) + 1):
        thick = ndimage.binary_opening(different, np.ones((thickness, thickness)))
        if not thick.any():
            break
        boxes = _frames(thick)
        top, left, bottom, right = boxes[0]
        if 4 * (bottom - top) * (right - left) <= different.size:
            break
    chosen: list[tuple[int, int, int, int]] = []
    for box in boxes:
        top, left, bottom, right = box
        if len(chosen) < number and all(top >= c[2] or bottom <= c[0] or left >= c[3] or right <= c[1] for c in chosen):
            chosen.append(box)
    return chosen


def _frames(different: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Return padded frames of the regions, those with most pixels first."""
    from scipy.ndimage import binary_dilation
    from skimage.measure import label, regionprops

    reach = max(1, round(max(different.shape) / 64))
    regions = regionprops(label(binary_dilation(different, iterations=reach)), different)
    regions.sort(key=lambda region: -region.image_intensity.sum())
    boxes = np.add([region.bbox for region in regions], (-reach, -reach, reach, reach))
    return [tuple(box) for box in np.clip(boxes, 0, different.shape * 2).tolist()]


def make_row(
    image: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    truth: np.ndarray | None = None,
    *,
    color: bool = False,
    aspect: float = 1.0,
    index: int | None = None,
    ignore: int | None = None,
    boxes: int = 1,
    crop: bool = True,
    enhanced: np.ndarray | None = None,
) -> dict:
    """A row of :func:`nnunet_din.plotting.panel.panel`: the slice that tells most, cropped, with frames.

    Parameters
    ----------
    image
        Any intensities, shape (C, Z, H, W) with C = 1, or 3 for colours.
    predictions
        Name of each model -> integer label map, shape (Z, H, W).
    truth
        True label map, shape (Z, H, W).
    color
        Whether the channels are the colours of one image.
    aspect
        Height of a pixel divided by its width.
    index
        Slice; None: the one of largest :func:`disagreement`, or, where nothing differs, the one with most foreground.
    ignore
        Value of voxels of the truth that do not count.
    boxes
        Largest number of frames.
    crop
        Whether to show only the surroundings of what is labelled in the slice.
    enhanced
        Enhanced image, shape of ``image``, values in (-1, 1). None: ``image`` enhanced as it is, by default parameters.

    Returns
    -------
    dict
        Keys `image`, `enhanced`, `predictions`, `truth`, `boxes`, `aspect`, and `index`, the slice.
    """
    different = disagreement(list(predictions.values()), truth)
    if truth is not None and ignore is not None:
        different &= truth != ignore
        truth = np.where(truth == ignore, 0, truth)
    maps = [*predictions.values(), *([] if truth is None else [truth])]
    if index is None:
        counts = different.sum(axis=(1, 2))
        index = int(counts.argmax()) if counts.any() else largest_slice(maps[-1])
    if enhanced is None:
        # The intensities of all slices count for the enhancement, so it cannot be applied to one slice alone.
        enhanced = enhance_slices(image.astype(np.float32), color=color)
    foreground = np.any([array[index] > 0 for array in maps], axis=0)
    window = crop_window(foreground, aspect) if crop else (slice(None), slice(None))

    def picture(channels: np.ndarray) -> np.ndarray:
        place = (slice(None), index, *window)
        shown = channels[place]
        return np.moveaxis(shown, 0, -1) if color else shown[0]

    return {
        "image": picture(image),
        "enhanced": picture(enhanced),
        "predictions": {name: array[index][window] for name, array in predictions.items()},
        "truth": None if truth is None else truth[index][window],
        "boxes": difference_boxes(different[index][window], boxes),
        "aspect": aspect,
        "index": index,
    }


def largest_slice(label: np.ndarray) -> int:
    """Find the slice that shows most of the structures.

    Parameters
    ----------
    label : numpy.ndarray
        Integer label map, shape (Z, H, W); values above 0 are foreground.

    Returns
    -------
    int
        Index along axis 0 of the slice with most foreground pixels, the first of several equal ones; the middle slice
        if there is no foreground.

    Raises
    ------
    ValueError
        If `label` is not three-dimensional.
    """
    label = np.asarray(label)
    if label.ndim != 3:
        raise ValueError(f"Expected a label map of shape (Z, H, W), got {label.shape}")
    counts = (label > 0).sum(axis=(1, 2))
    return int(counts.argmax()) if counts.any() else len(label) // 2
