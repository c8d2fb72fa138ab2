"""The enhanced version of a case that the network of some plans gets, in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnunet_din.data.files import refuse_overwriting
from nnunet_din.data.images import read_case, split_name, write_image
from nnunet_din.nnunet.folders import dataset_name, nnunet_folder
from nnunet_din.nnunet.images import channel_files
from nnunet_din.nnunet.planned import PlannedModel


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
