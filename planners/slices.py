"""Zero-DCE fitted to the training images of a raw data set."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nnunet_din.data.images import read_case
from nnunet_din.data.progress import progress
from nnunet_din.enhancement import to_unit_interval
from nnunet_din.enhancement.intensity import INTENSITIES
from nnunet_din.nnunet.images import find_reader
from nnunet_din.nnunet.labels import is_color, read_dataset_json

_MOST_SLICES = 2500  # about as many images as the paper fits to
_WINDOW = 2  # sizes of a crop: of larger slices only a part is kept


def training_slices(raw: Path, size: int = 128, seed: int = 0) -> tuple[list[np.ndarray], bool]:
    """Slices of a raw data set's training images, as the enhancement sees them but for normalization and resampling.

    At most 2500 slices, as many of each case where possible; of slices larger than twice the size of a crop, a random
    part.

    Parameters
    ----------
    raw
        Folder of the data set.
    size
        Size of the crops to be fitted to, in pixels.
    seed
        Seed of the choice of slices.

    Returns
    -------
    slices : list of numpy.ndarray
        Images in (-1, 1), float32, shape ``(3, H, W)`` in colour and else ``(1, H, W)``.
    color : bool
        Whether the channels of the data set are the colours of natural images.

    Raises
    ------
    FileNotFoundError
        If there are no training images.
    ValueError
        If an image cannot be read or has values that are not finite.
    """
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    description = read_dataset_json(raw / "dataset.json")
    cases = []
    if (raw / "imagesTr").is_dir() or "dataset" in description:
        cases = [case["images"] for case in get_filenames_of_train_images_and_targets(str(raw), description).values()]
    if not cases:
        raise FileNotFoundError(f"{raw / 'imagesTr'} holds no training images.")
    reader = find_reader(description, Path(cases[0][0]))
    color = is_color(description, cases[0], type(reader).__name__)

    rng = np.random.default_rng(seed)
    share = math.ceil(_MOST_SLICES / len(cases))
    slices: list[np.ndarray] = []
    for files in progress([cases[i] for i in rng.permutation(len(cases))], desc="reading", unit="cases"):
        image = read_case([Path(file) for file in files], reader)
        try:
            of_case = list(_slices(image.array, image.slice_axis, color))
        except ValueError as error:
            raise ValueError(f"{files[0]}: {error}") from error
        chosen = rng.permutation(len(of_case))[: min(share, _MOST_SLICES - len(slices))]
        slices += [_window(of_case[i], _WINDOW * size, rng) for i in chosen]
        if len(slices) == _MOST_SLICES:
            break
    return slices, color


def _slices(data: np.ndarray, axis: int, color: bool) -> Iterator[np.ndarray]:
    """Cut a volume ``(C, Z, Y, X)`` into slices ``(C, H, W)``; without colours, each channel on its own."""
    data = np.moveaxis(data, axis + 1, 1)
    for channels in [slice(None)] if color else [slice(c, c + 1) for c in range(len(data))]:
        f = to_unit_interval(data[channels], **INTENSITIES).astype(np.float32, copy=False)
        # A slice without contrast teaches nothing.
        yield from (f[:, z] for z in range(f.shape[1]) if np.ptp(f[:, z]) > 0)


def _window(image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Copy a random part of an image ``(C, H, W)`` that is not larger than a square."""
    top, left = (rng.integers(max(s - side, 0) + 1) for s in image.shape[1:])
    return image[:, top : top + side, left : left + side].copy()
