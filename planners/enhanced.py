"""The enhanced version of an image file: as the image is stored, or as the network of some plans gets it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nnunet_din.data.files import refuse_overwriting
from nnunet_din.data.images import read_case, read_image, split_name, write_image
from nnunet_din.enhancement import enhance
from nnunet_din.nnunet.folders import dataset_name, nnunet_folder
from nnunet_din.nnunet.images import channel_files
from nnunet_din.nnunet.planned import PlannedModel


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


def enhance_as_planned(
    source: Path, target: Path, dataset: str, plans_name: str = "nnUNetDINPlans", configuration: str = "2d"
) -> dict[Path, tuple[np.ndarray, np.ndarray]]:
    """Write what the network gets of a case, on the grid of its image.

    Parameters
    ----------
    source
        First channel of the case, ``CASE_0000.nii.gz``; the others lie beside it.
    target
        File to write. With several channels or enhancements each has a file of its own, their numbers in its name.
    dataset, plans_name, configuration
        Data set, and a configuration of its plans.

    Returns
    -------
    dict of pathlib.Path to tuple of numpy.ndarray
        Every file, with the slices of its image and their enhanced versions, shapes ``(C, slices, H, W)``.

    Raises
    ------
    ValueError, FileNotFoundError
        If data set, plans or files are missing or do not fit each other, or the plans name a class of strangers.
    """
    folder = nnunet_folder("nnUNet_preprocessed") / dataset_name(dataset)
    model = PlannedModel.read(folder / f"{plans_name}.json", folder / "dataset.json", configuration)
    files = channel_files(source, model.channels, model.dataset_json["file_ending"])
    image = read_case(files, model.reader)
    enhanced = model.enhanced_on_image_grid(*model.preprocess(files))
    # Colours stay in one file.
    groups = [slice(None)] if image.color else [slice(c, c + 1) for c in range(len(image.array))]
    stem, ending = split_name(target)
    outputs = {}
    for number, version in enumerate(enhanced):
        for c, group in enumerate(groups):
            several = len(enhanced) * len(groups) > 1
            path = target.with_name(f"{stem}_{number}_{c:04d}{ending}") if several else target
            outputs[path] = (image.array[group], version[group])
    refuse_overwriting(outputs, files)
    for path, (_, channels) in outputs.items():
        write_image(path, model.as_stored(channels, source), source)
    axis = image.slice_axis + 1
    return {path: (np.moveaxis(a, axis, 1), np.moveaxis(b, axis, 1)) for path, (a, b) in outputs.items()}
