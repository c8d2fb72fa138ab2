"""Images and label maps from files, by SimpleITK."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_din.data.files import written_whole
from nnunet_din.data.integrity import check_file

if TYPE_CHECKING:
    import SimpleITK


@dataclass(frozen=True)
class Image:
    """An image.

    Attributes
    ----------
    array : numpy.ndarray
        ``(Z, Y, X)``, or ``(Z, Y, X, 3)`` in colour. A two-dimensional image has one slice.
    spacing : tuple of float
        Distance of voxels along z, y and x in mm; the slice of a two-dimensional image is infinitely thick.
    color : bool
        Whether it is a two-dimensional image in three colours.
    source : SimpleITK.Image
        The image as SimpleITK read it.
    """

    array: np.ndarray
    spacing: tuple[float, ...]
    color: bool
    source: SimpleITK.Image

    @property
    def flat(self) -> bool:
        """Whether the image is two-dimensional."""
        return self.source.GetDimension() == 2

    @property
    def slice_axis(self) -> int:
        """Axis of ``array`` across the slices: that of the largest spacing, as nnU-Net's 2-D configuration slices."""
        return int(np.argmax(self.spacing))

    def channels(self) -> np.ndarray:
        """The array with its channels first, ``(C, Z, Y, X)``."""
        return np.moveaxis(self.array, -1, 0) if self.color else self.array[None]


def read_image(path: Path) -> Image:
    """Read a volume, a 2-D image, or a 2-D image in three colours.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not whole, SimpleITK cannot read it, or it is something else.
    """
    import SimpleITK

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    check_file(path)
    try:
        image = SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path}: SimpleITK cannot read this as an image.") from error
    array, spacing = SimpleITK.GetArrayFromImage(image), image.GetSpacing()[::-1]
    components = image.GetNumberOfComponentsPerPixel()
    color = components == 3 and image.GetDimension() == 2
    if image.GetDimension() not in (2, 3) or (components != 1 and not color):
        raise ValueError(f"{path}: expected a volume, a 2-D image or a 2-D image in three colours, got {array.shape}.")
    if image.GetDimension() == 2:
        array, spacing = array[None], (np.inf, *spacing)
    return Image(array, spacing, color, image)


def read_label_map(path: Path) -> np.ndarray:
    """Read a label map as integers, ``(Z, Y, X)``.

    Raises
    ------
    FileNotFoundError, ValueError
        See :func:`read_image`; or if it is in colours or has values that are no whole numbers.
    """
    image = read_image(path)
    if image.color:
        raise ValueError(f"{path}: a label map has one number a pixel, and this is a picture in colours.")
    labels = image.array.astype(np.int32)
    if (wrong := labels != image.array).any():
        raise ValueError(f"{path}: a label map has whole numbers, and this has {image.array[wrong][0]:g}.")
    return labels


def write_image(path: Path, array: np.ndarray, like: Image) -> None:
    """Write an array of the shape of ``like.array``, with its geometry.

    Raises
    ------
    ValueError
        If the format cannot hold such an image.
    OSError
        If the file does not hold what was written to it, as where the disk is full; it is removed.
    """
    import SimpleITK

    image = SimpleITK.GetImageFromArray(array[0] if like.flat else array, isVector=like.color)
    image.CopyInformation(like.source)
    with written_whole(path) as temporary:
        try:
            SimpleITK.WriteImage(image, str(temporary), useCompression=True)
        except RuntimeError as error:
            raise ValueError(
                f"{path}: SimpleITK cannot write floating-point images in this format. Use a name that ends in "
                ".nii.gz, .nrrd or .mha."
            ) from error
        # SimpleITK does not notice a full disk.
        try:
            whole = np.array_equal(
                SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(temporary))), SimpleITK.GetArrayViewFromImage(image)
            )
        except RuntimeError:
            whole = False
        if not whole:
            raise OSError(errno.ENOSPC, "the file does not hold what was written: is the disk full?", str(path))
