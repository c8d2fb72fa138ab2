"""Writing one case: check image against label, write both."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_din.data.converters.splits import split_80_10_10
from nnunet_din.data.images import save
from nnunet_din.data.integrity import check_file
from nnunet_din.data.raw_dataset import Case, RawDataset

_TOLERANCE = 1e-3
_GREY = 0.05  # fraction of pixels


def write_volume_case(case: Case, image_target: Path, label_target: Path, mapping: Mapping[int, int]) -> None:
    """Copy a volume byte by byte and write its label as uint8 with the image's geometry.

    Parameters
    ----------
    case : Case
        Image and label, compressed files (`.gz`) that SimpleITK reads, three-dimensional.
    image_target, label_target : pathlib.Path
        Files to write.
    mapping : mapping of int to int
        New value, 0 to 255, of each value, 0 to 255, that the label may hold.

    Raises
    ------
    ValueError
        If a file cannot be read, sizes differ, spacing, origin or direction differ by more than 1e-3 (in mm, and
        relative), or the label holds another value.
    """
    import SimpleITK as sitk

    image, label = _read_volume(case.image), _read_volume(case.label)
    for what in ("Size", "Spacing", "Origin", "Direction"):
        of_image, of_label = getattr(image, f"Get{what}")(), getattr(label, f"Get{what}")()
        if not np.allclose(of_image, of_label, rtol=_TOLERANCE, atol=_TOLERANCE):
            raise ValueError(f"{case.name}: image and label differ in {what.lower()}, {of_image} and {of_label}.")
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
    foreign = label[~np.isin(label, list(mapping))]
    if foreign.size:
        raise ValueError(
            f"{case.name}: {case.label} holds the label {foreign[0]:g}; allowed are "
            f"{', '.join(map(str, sorted(mapping)))}."
        )
    table = np.zeros(256, dtype=np.uint8)
    table[list(mapping)] = list(mapping.values())
    return table[label.astype(np.uint8)]


def _read_volume(path: Path) -> Any:
    import SimpleITK as sitk

    check_file(path)
    image = sitk.ReadImage(str(path))
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


#: A data set of colour images, split at random.
color_dataset = partial(
    RawDataset,
    channel_names=("R", "G", "B"),
    file_ending=".png",
    split=split_80_10_10,
    write=write_color_case,
    reader="NaturalImage2DIO",
)
