"""An image as the network sees it, brought back to the image's own grid for pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nnunet_din.enhancement.entry import enhancements_of


def enhanced_on_image_grid(
    files: Sequence[Path], plans: Mapping, configuration: str, dataset_json: Mapping
) -> np.ndarray:
    """The enhanced versions of a case that the network gets: after nnU-Net's cropping, normalization and resampling,
    with the statistics of the whole volume.

    Parameters
    ----------
    files
        The channels of the case.
    plans, configuration
        Plans of a DIN planner, and one of their DIN configurations.
    dataset_json
        Content of the data set's ``dataset.json``.

    Returns
    -------
    numpy.ndarray
        Shape ``(enhancements, C, Z, Y, X)`` on the grid of the image (resampled linearly from the network's), values in
        (-1, 1). What nnU-Net crops away is -1.

    Raises
    ------
    ValueError
        If the configuration has no enhancement, or a file cannot be read.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from skimage.transform import resize

    manager = PlansManager(dict(plans))
    configuration_manager = manager.get_configuration(configuration)
    count = len(enhancements_of(configuration_manager.configuration))
    if not count:
        raise ValueError(f"Configuration '{configuration}' has no `enhancement`: it was not made by a DIN planner.")
    preprocessor = configuration_manager.preprocessor_class(verbose=False)
    data, _, properties = preprocessor.run_case(
        [str(file) for file in files], None, manager, configuration_manager, dict(dataset_json)
    )
    enhanced = data.reshape(1 + count, -1, *data.shape[1:])[1:]
    on_grid = np.full((*enhanced.shape[:2], *properties["shape_before_cropping"]), -1, np.float32)
    box = tuple(slice(*bounds) for bounds in properties["bbox_used_for_cropping"])
    shape = tuple(properties["shape_after_cropping_and_before_resampling"])
    for version, target in zip(enhanced, on_grid, strict=True):
        for channel, image in zip(version, target, strict=True):
            image[box] = resize(channel, shape, order=1, mode="edge", anti_aliasing=False)
    return on_grid.transpose([0, 1, *(2 + axis for axis in manager.transpose_backward)])


def channel_files(first: Path, count: int, file_ending: str) -> list[Path]:
    """The files of all channels of a case, from that of the first, ``CASE_0000.nii.gz``.

    Raises
    ------
    ValueError
        If the name does not end so.
    FileNotFoundError
        If one is missing.
    """
    mark = f"_0000{file_ending}"
    if not first.name.endswith(mark):
        raise ValueError(f"{first}: with plans, name the first channel of a case, CASE{mark}.")
    files = [first.with_name(f"{first.name.removesuffix(mark)}_{c:04d}{file_ending}") for c in range(count)]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist: the data set has {count} channels.")
    return files
