"""Images: in memory, and in files as SimpleITK reads and writes them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_din.data.files import written_whole
from nnunet_din.data.integrity import check_file

if TYPE_CHECKING:
    import SimpleITK

#: Spacing that nnU-Net's readers give a two-dimensional image across its plane, in sizes of a pixel.
_THICKNESS_OF_2D_IMAGES = 999


@dataclass(frozen=True)
class Image:
    """An image.

    Attributes
    ----------
    array : numpy.ndarray
        Shape ``(C, Z, Y, X)``. A two-dimensional image has one slice.
    spacing : tuple of float
        Distance of voxels along z, y and x in mm; the slice of a two-dimensional image is infinitely thick.
    color : bool
        Whether the channels are the red, green and blue of one picture.
    """

    array: np.ndarray
    spacing: tuple[float, ...]
    color: bool

    @property
    def flat(self) -> bool:
        """Whether the image is two-dimensional."""
        return bool(np.isinf(self.spacing[0]))

    @property
    def slice_axis(self) -> int:
        """Axis of ``(Z, Y, X)`` across the slices: that of the largest spacing, as nnU-Net slices in 2-D."""
        return int(np.argmax(self.spacing))


def read_image(path: Path) -> Image:
    """Read a volume, or a 2-D image of any number of channels.

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
    channels = image.GetNumberOfComponentsPerPixel()
    if image.GetDimension() == 2:
        array = np.moveaxis(array.reshape(*array.shape[:2], channels), -1, 0)
        return Image(array[:, None], (np.inf, *spacing), color=channels == 3)
    if image.GetDimension() != 3 or channels != 1:
        raise ValueError(f"{path}: expected a volume of one channel or a 2-D image, got {array.shape}.")
    return Image(array[None], spacing, color=False)


def read_case(files: Sequence[Path], reader: Any) -> Image:
    """Read the channels of a case.

    Parameters
    ----------
    files
        One file for each channel, or one that holds all of them.
    reader
        An object with the methods of nnU-Net's readers, which may turn images.

    Raises
    ------
    FileNotFoundError
        If a file does not exist.
    ValueError
        If a file is not whole, or cannot be read.
    """
    array, spacing = _read(files, reader.read_images)
    color = len(files) == 1 and len(array) == 3 and np.isinf(spacing[0])
    return Image(array, spacing, bool(color))


def read_label_map(file: Path, reader: Any = None) -> np.ndarray:
    """Read a label map as integers, ``(Z, Y, X)``, by :func:`read_case`'s readers or, without one, as it is stored.

    Raises
    ------
    FileNotFoundError, ValueError
        As in :func:`read_case`, or if the file has several channels, or values that are no whole numbers.
    """
    array = _read([file], lambda names: reader.read_seg(names[0]))[0] if reader else read_image(file).array
    if len(array) != 1:
        raise ValueError(f"{file}: a label map has one number a voxel, and this has {len(array)}.")
    labels = array[0].astype(np.int32)
    if (wrong := labels != array[0]).any():
        raise ValueError(f"{file}: a label map has whole numbers, and this has {array[0][wrong][0]:g}.")
    return labels


def _read(files: Sequence[Path], read: Callable) -> tuple[np.ndarray, tuple[float, ...]]:
    """What a reader makes of files: array ``(C, Z, Y, X)`` and spacing in mm."""
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file.")
        check_file(file)
    try:
        array, properties = read([str(file) for file in files])
        spacing = tuple(float(s) for s in properties["spacing"])
    except Exception as error:  # readers raise what they please
        raise ValueError(f"{files[0]} cannot be read as an image: {str(error) or type(error).__name__}.") from error
    if array.shape[1] == 1 and spacing[0] >= _THICKNESS_OF_2D_IMAGES * max(spacing[1:]):
        spacing = (np.inf, *spacing[1:])
    return array, spacing


def split_name(path: Path) -> tuple[str, str]:
    """Name and ending of an image file; .nii.gz is one ending, and a name may have points in it."""
    ending = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    return path.name.removesuffix(ending), ending


def write_image(path: Path, channels: np.ndarray, like: Path) -> None:
    """Write an image with the geometry of another one.

    Parameters
    ----------
    path
        File to write.
    channels
        Shape ``(C, Z, Y, X)``: one channel, or those of a 2-D image.
    like
        Image file that lies on the same grid.

    Raises
    ------
    ValueError
        If SimpleITK cannot read ``like``, or the format cannot hold such an image.
    OSError
        If the file does not hold what was written to it, as where the disk is full; it is removed.
    """
    import SimpleITK

    try:
        source = SimpleITK.ReadImage(str(like))
    except RuntimeError as error:
        raise ValueError(f"{like}: SimpleITK, which writes the result, cannot read this as an image.") from error
    array = channels[:, 0] if source.GetDimension() == 2 else channels
    several = len(array) > 1
    image = SimpleITK.GetImageFromArray(np.moveaxis(array, 0, -1) if several else array[0], isVector=several)
    image.CopyInformation(source)
    try:
        save(image, path)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: SimpleITK cannot write floating-point images in this format. Use a name that ends in "
            ".nii.gz, .nrrd or .mha."
        ) from error


def save(image: SimpleITK.Image, path: Path) -> None:
    """Write an image of SimpleITK, compressed, whole or not at all.

    Raises
    ------
    RuntimeError
        If SimpleITK cannot write it.
    OSError
        If the file does not hold what was written to it, as where the disk is full, which SimpleITK does not notice.
    """
    import SimpleITK

    with written_whole(path) as temporary:
        SimpleITK.WriteImage(image, str(temporary), useCompression=True)
        try:
            written = SimpleITK.ReadImage(str(temporary))
            whole = np.array_equal(SimpleITK.GetArrayViewFromImage(written), SimpleITK.GetArrayViewFromImage(image))
        except RuntimeError:
            whole = False
        if not whole:
            raise OSError(errno.ENOSPC, "the file does not hold what was written: is the disk full?", str(path))
