"""Writing one case: check image against label, write both."""

from __future__ import annotations

import gzip
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nnunet_din.data.images import save
from nnunet_din.data.raw_dataset import Case

__all__ = ["write_color_case", "write_volume_case"]

_TOLERANCE = 1e-3
_FOREIGN = 255
_GREY = 0.05  # fraction of pixels
_CHUNK = 1 << 20  # bytes


def write_volume_case(case: Case, image_target: Path, label_target: Path, mapping: Mapping[int, int]) -> None:
    """Copy a volume byte by byte and write its label as uint8 with the image's geometry.

    Parameters
    ----------
    case : Case
        Image and label, compressed files (`.gz`) that SimpleITK reads, three-dimensional.
    image_target, label_target : pathlib.Path
        Files to write.
    mapping : mapping of int to int
        New value, 0 to 254, of each value, 0 to 255, that the label may hold.

    Raises
    ------
    ValueError
        If a file cannot be read, sizes differ, spacing, origin or direction differ by more than 1e-3 (in mm, and
        relative), or the label holds another value.
    """
    import SimpleITK as sitk

    image, label = _read_volume(case.image), _read_volume(case.label)
    if image.GetSize() != label.GetSize():
        raise ValueError(f"{case.name}: image and label differ in size, {image.GetSize()} and {label.GetSize()}.")
    for what in ("Spacing", "Origin", "Direction"):
        ours, theirs = getattr(image, f"Get{what}")(), getattr(label, f"Get{what}")()
        if not np.allclose(ours, theirs, rtol=_TOLERANCE, atol=_TOLERANCE):
            raise ValueError(f"{case.name}: image and label differ in {what.lower()}, {ours} and {theirs}.")
    result = sitk.GetImageFromArray(_relabel(sitk.GetArrayFromImage(label), mapping, case))
    result.CopyInformation(image)
    save(result, label_target)
    shutil.copyfile(case.image, image_target)


def write_color_case(case: Case, image_target: Path, label_target: Path) -> None:
    """Write a colour image as RGB PNG, pixels unchanged, and its mask as PNG of 0 and 1.

    Parameters
    ----------
    case : Case
        RGB image with 8 bits a channel, and a mask: bright above half of 255, or 0 and 1.
    image_target, label_target : pathlib.Path
        PNG files to write.

    Raises
    ------
    ValueError
        If a file cannot be read, the image is not RGB, sizes differ, or the mask is no mask.
    """
    from PIL import Image

    image, mask = _read_picture(case.image), _read_picture(case.label)
    if image.mode not in ("RGB", "RGBA"):
        raise ValueError(f"{case.name}: {case.image} is not an RGB image, but {image.mode}.")
    if image.size != mask.size:
        raise ValueError(f"{case.name}: image and mask differ in size, {image.size} and {mask.size} pixels.")
    grey = np.asarray(mask.convert("L"))
    if grey.max() > 1:
        # Masks that were scaled or compressed have a few grey pixels on their edges; a photograph has many.
        if np.mean((grey >= 64) & (grey < 192)) > _GREY:
            raise ValueError(f"{case.name}: {case.label} is not a mask, it holds other values than 0 and 255.")
        grey = grey > 127
    Image.fromarray(grey.astype(np.uint8)).save(label_target)
    # More compression takes half as long again and saves a tenth.
    image.convert("RGB").save(image_target, compress_level=1)


def _relabel(label: np.ndarray, mapping: Mapping[int, int], case: Case) -> np.ndarray:
    table = np.full(256, _FOREIGN, dtype=np.uint8)
    for source, target in mapping.items():
        table[source] = target
    with np.errstate(invalid="ignore"):
        small = label.astype(np.uint8)
    result = np.where(small == label, table[small], _FOREIGN).astype(np.uint8)
    foreign = np.unique(label[result == _FOREIGN])
    if foreign.size:
        values = ", ".join(f"{value:g}" for value in foreign[:5])
        raise ValueError(
            f"{case.name}: {case.label} holds the label {values}; allowed are {', '.join(map(str, sorted(mapping)))}."
        )
    return result


def _read_volume(path: Path):
    import SimpleITK as sitk

    try:
        # SimpleITK fills what a file that was cut short lacks, and says nothing.
        with gzip.open(path) as file:
            while file.read(_CHUNK):
                pass
        image = sitk.ReadImage(str(path))
    except (EOFError, OSError, zlib.error, RuntimeError) as error:
        raise ValueError(f"{path} is damaged or no volume; download it again.") from error
    if image.GetDimension() != 3:
        raise ValueError(f"{path}: expected a volume, got {image.GetDimension()} dimensions.")
    return image


def _read_picture(path: Path):
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except OSError as error:
        raise ValueError(f"{path} cannot be read as an image; download it again.") from error
