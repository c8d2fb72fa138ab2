"""Whether an image file is whole: what readers of images let pass in silence."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

#: An intensity further from the median than this many times the range of the bulk leaves the bulk one value in float32.
_OUTLIER = 1e6
#: Voxels from which the range of the bulk is taken.
_SAMPLE = 100_000


def check_file(path: Path) -> None:
    """Refuse a NIfTI file that is not whole or not finite; other formats pass, whose readers look themselves.

    SimpleITK fills up what a NIfTI file lacks with what was in memory, and replaces NaN and infinity by 0.

    Raises
    ------
    ValueError
        If the gzip stream is damaged or ends early, voxels are missing, or voxels are NaN or infinite as stored.
    """
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return
    import nibabel

    content = _content(path)
    kinds = (nibabel.Nifti1Header, nibabel.Nifti2Header)
    kind = next((kind for kind in kinds if kind.may_contain_header(content[:1024])), None)
    if kind is None:
        raise ValueError(f"{path} is no NIfTI file, in spite of its name: its header is another one.")
    try:
        header = kind(content[: kind.sizeof_hdr])
        shape, dtype, offset = header.get_data_shape(), header.get_data_dtype(), header.get_data_offset()
    except Exception as error:  # nibabel raises its own errors, numpy's and struct's
        raise ValueError(f"{path} has a damaged NIfTI header: {error}.") from error
    if not shape or min(shape) < 1:
        raise ValueError(f"{path} has a damaged NIfTI header: its shape is {shape}.")
    count = math.prod(shape)
    expected = offset + count * dtype.itemsize
    if len(content) < expected:
        raise ValueError(
            f"{path} is cut off: it holds {len(content)} of {expected} bytes. Copy or export it again from its source."
        )
    if dtype.kind in "fc":
        voxels = np.frombuffer(content, dtype, count, offset)
        finite = np.isfinite(voxels)
        if not finite.all():
            first = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), shape, order="F"))
            raise ValueError(
                f"{path} has {count - np.count_nonzero(finite)} NaN or infinite voxels of {count}, the first at "
                f"(x, y, z) = {first}. Readers replace them in silence: repair the image, for example with "
                "numpy.nan_to_num."
            )


def _content(path: Path) -> bytes:
    """The file's bytes, unpacked to the end, where gzip's checksum stands."""
    if not path.name.lower().endswith(".gz"):
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            return file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged or cut off ({error}). Copy or export it again from its source.") from error


class WrongLabel(ValueError):
    """A label map holds a value that the data set does not have."""


def check_labels(labels: np.ndarray, allowed: Iterable[int]) -> None:
    """Refuse values in a label map that the data set does not have.

    Parameters
    ----------
    labels
        Label map of any type as read, not rounded, with axes z, y, x last.
    allowed
        The values that may occur.

    Raises
    ------
    WrongLabel
        If there is another value; the message gives the first and its place, and no file.
    """
    allowed = sorted({int(value) for value in allowed})
    wrong = ~np.isin(labels, allowed)
    if not wrong.any():
        return
    place = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    raise WrongLabel(
        f"the value {labels[place]:g} at (z, y, x) = {tuple(int(i) for i in place[-3:])}, and "
        f"{np.count_nonzero(wrong)} such voxels in all, is none of the labels in dataset.json: "
        f"{', '.join(map(str, allowed))}."
    )


def find_outlier(raw: np.ndarray, normalized: np.ndarray) -> tuple[int, ...] | None:
    """Place in ``raw`` of a voxel beside which all others are one value after normalization; None if there is none.

    Parameters
    ----------
    raw, normalized
        A channel before normalization and after, of any shapes.
    """
    low, median, high = np.percentile(_sample(raw), [1, 50, 99])
    distance = np.abs(raw - np.float32(median))
    if high <= low or distance.max() <= _OUTLIER * (high - low):
        return None
    left, right = np.percentile(_sample(normalized), [1, 99])
    if right - left > np.ptp(normalized) / _OUTLIER:  # clipped, as nnU-Net does for CT
        return None
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(distance)), raw.shape))


def _sample(voxels: np.ndarray) -> np.ndarray:
    return voxels.ravel()[:: max(1, voxels.size // _SAMPLE)]
