"""Whether an image file is whole: what readers of images let pass in silence."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np

#: An intensity further from the median than this many times the range of the bulk leaves the bulk one value in float32.
_OUTLIER = 1e6
#: Intensities further from the median than this have a variance that float32 cannot hold: normalized, all are 0.
_OVERFLOW = 1e15
#: Numbers that float32 rounds to fewer grey values than this have lost their contrast.
_GREY_VALUES = 256
#: Voxels from which the range of the bulk is taken.
_SAMPLE = 100_000


def check_name(path: Path) -> None:
    """Refuse a file name that is not UTF-8, at which SimpleITK ends the process.

    Raises
    ------
    ValueError
        If the name of the file or of a folder in ``path`` is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        name = os.fsencode(path).decode(errors="backslashreplace")
        raise ValueError(f"{name}: this name is not UTF-8, and readers of images cannot take it: rename it.") from error


def check_spacing(path: Path) -> None:
    """Refuse a NIfTI file whose header has a spacing that readers replace by another one.

    Raises
    ------
    ValueError
        If it is not positive and finite.
    """
    with _unpacked(path) as file:
        _check_spacing(path, _header(path, file.read(1024)))


def check_file(path: Path) -> None:
    """Refuse a file that is not whole or that readers take for another image than it holds.

    SimpleITK fills up what a NIfTI file lacks with what was in memory, replaces NaN and infinity by 0, and takes a
    spacing that is impossible for 1 mm. Of other formats, whose readers look themselves, only the name and the range of
    the voxels are checked.

    Raises
    ------
    ValueError
        If the name is not UTF-8, the gzip stream is damaged or ends early, voxels are missing, voxels are NaN or
        infinite as stored, the header's spacing is not positive and finite, or voxels are so large that float32 cannot
        tell them apart, or cannot hold them.
    """
    check_name(path)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        _check_range(path, _wide_voxels(path))
        return
    with _unpacked(path) as file:
        content = file.read()  # to the end, where gzip's checksum stands
    header = _header(path, content[:1024])
    _check_spacing(path, header)
    try:
        header.check_fix()
        shape, dtype, offset = header.get_data_shape(), header.get_data_dtype(), header.get_data_offset()
        slope, intercept = header.get_slope_inter()
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
    if dtype.kind not in "fciu":
        return
    voxels = np.frombuffer(content, dtype, count, offset)
    finite = np.isfinite(voxels)
    if not finite.all():
        first = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), shape, order="F"))
        raise ValueError(
            f"{path} has {count - np.count_nonzero(finite)} NaN or infinite voxels of {count}, the first at "
            f"(x, y, z) = {first}. Readers replace them in silence: repair the image, for example with "
            "numpy.nan_to_num."
        )
    if dtype.kind != "c":
        _check_range(path, voxels, 1 if slope is None else slope, intercept or 0)


@contextmanager
def _unpacked(path: Path) -> Iterator[BufferedIOBase]:
    """A NIfTI file, unpacked if it is packed; SimpleITK reads unpacked ones that are called .nii.gz, too."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        if packed and not path.name.lower().endswith(".gz"):
            raise ValueError(f"{path} is compressed, in spite of its name: rename it to {path.name}.gz.")
        file.seek(0)
        try:
            yield gzip.open(file) if packed else file
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"{path} is damaged or cut off ({error}). Copy or export it again from its source."
            ) from error


def _header(path: Path, beginning: bytes) -> Any:
    """NIfTI header as it is stored."""
    import nibabel

    kinds = (nibabel.Nifti1Header, nibabel.Nifti2Header)
    kind = next((kind for kind in kinds if kind.may_contain_header(beginning)), None)
    if kind is None:
        raise ValueError(f"{path} is no NIfTI file, in spite of its name: its header is another one.")
    return kind(beginning[: kind.sizeof_hdr], check=False)


def _check_spacing(path: Path, header: Any) -> None:
    spacing = header["pixdim"][1:4][: header["dim"][0]]
    if not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(
            f"{path} has the spacing {' x '.join(f'{s:g}' for s in spacing)} in its header (pixdim), which readers "
            "replace in silence, for example by 1 mm: write the right one, for example with nibabel's `set_zooms`."
        )


def _wide_voxels(path: Path) -> np.ndarray:
    """Voxels of a type that float32 does not hold; none of another type, or where SimpleITK does not know the file."""
    import SimpleITK as sitk

    kinds = (sitk.sitkInt32, sitk.sitkUInt32, sitk.sitkInt64, sitk.sitkUInt64, sitk.sitkFloat64)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        wide = reader.GetPixelID() in kinds
        return sitk.GetArrayFromImage(reader.Execute()) if wide else np.empty(0)
    except RuntimeError:
        return np.empty(0)


def _check_range(path: Path, voxels: np.ndarray, slope: float = 1, intercept: float = 0) -> None:
    """Refuse stored voxels that float32 cannot hold, or rounds to fewer and too few grey values."""
    if not voxels.size:
        return
    sample = _sample(voxels)
    if (slope, intercept) != (1, 0):
        sample = sample.astype(np.float64) * slope + intercept
    with np.errstate(over="ignore"):
        single = sample.astype(np.float32)
        step = np.spacing(np.abs(single).max())
    left = np.unique(single).size
    merged = left < _GREY_VALUES and left < np.unique(sample).size
    if merged and voxels.dtype.kind == "f":  # not what float64 has of rounding errors
        merged = np.ptp(single) < _GREY_VALUES * step
    if merged or not np.isfinite(step):
        raise ValueError(
            f"{path} has values up to {sample.max():g}, so large that float32, in which nnU-Net computes, cannot hold "
            "them or tell them apart: subtract what they have in common, or divide them."
        )


class WrongLabel(ValueError):
    """A label map holds what a label map of the data set cannot hold."""


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
    """Place in ``raw`` of the voxel for which all others are one value after normalization; None if there is none.

    Parameters
    ----------
    raw, normalized
        A channel before normalization and after, of any shapes.
    """
    low, median, high = np.percentile(_sample(raw), [1, 50, 99])
    distance = np.abs(raw - np.float32(median))
    if distance.max() <= _OVERFLOW and (high <= low or distance.max() <= _OUTLIER * (high - low)):
        return None
    left, right = np.percentile(_sample(normalized), [1, 99])
    if right - left > np.ptp(normalized) / _OUTLIER:  # clipped, as nnU-Net does for CT
        return None
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(distance)), raw.shape))


def _sample(voxels: np.ndarray) -> np.ndarray:
    return voxels.ravel()[:: max(1, voxels.size // _SAMPLE)]
