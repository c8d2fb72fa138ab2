"""A configuration of plans, parsed: what happens to an image before the network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_din.nnunet.known_classes import check_classes
from nnunet_din.nnunet.labels import number_of_channels, read_dataset_json
from nnunet_din.nnunet.plans import enhancements_of, read_plans, resolve

#: What a configuration and plans say that does not change a preprocessed image. What is not known does.
_NOT_OF_IMAGES = {
    *("architecture", "batch_dice", "batch_size", "data_identifier", "median_image_size_in_voxels", "next_stage"),
    *("patch_size", "previous_stage", "resampling_fn_seg", "resampling_fn_seg_kwargs", "resampling_fn_probabilities"),
    *("resampling_fn_probabilities_kwargs", "training"),
}
_OF_IMAGES = ("image_reader_writer", "transpose_forward", "foreground_intensity_properties_per_channel")


@dataclass(frozen=True)
class PlannedModel:
    """A configuration of plans, of DIN or not, for a data set.

    Attributes
    ----------
    plans, dataset_json : dict
        Contents of the files.
    configuration : str
        Name of the configuration.
    """

    plans: dict
    dataset_json: dict
    configuration: str

    @classmethod
    def read(cls, plans: Path, dataset_json: Path, configuration: str) -> PlannedModel:
        """Read the files of a model, of predictions or of a data set, and check the classes that they name.

        Raises
        ------
        FileNotFoundError
            If a file does not exist.
        ValueError
            If it holds something else, or the plans name a class that is not nnU-Net's or ours.
        """
        model = PlannedModel(read_plans(plans), read_dataset_json(dataset_json), configuration)
        try:
            resolve(model.plans, configuration)
            check_classes(model)
        except ValueError as error:
            raise ValueError(f"{plans}: {error}") from error
        return model

    @cached_property
    def manager(self) -> Any:
        """nnU-Net's view of the plans."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        return PlansManager(self.plans)

    @cached_property
    def configuration_manager(self) -> Any:
        """nnU-Net's view of the configuration."""
        return self.manager.get_configuration(self.configuration)

    @cached_property
    def reader(self) -> Any:
        """nnU-Net's reader and writer of the data set's files, which may turn images.

        Raises
        ------
        ValueError
            If nnU-Net has none of this name.
        """
        try:
            return self.manager.image_reader_writer_class()
        except Exception as error:  # nnU-Net raises what it pleases about a name that is none
            name = self.plans.get("image_reader_writer")
            raise ValueError(f"nnU-Net has no reader of images called {name!r}, as the plans say.") from error

    def as_stored(self, channels: np.ndarray, file: Path) -> np.ndarray:
        """Turn channels ``(C, Z, Y, X)`` as :attr:`reader` reads them back to the axes of an image file."""
        import nibabel
        import SimpleITK as sitk

        name = type(self.reader).__name__
        if not name.endswith("WithReorient"):  # the others do not turn
            return channels
        orienting = sitk.DICOMOrientImageFilter
        if name.startswith("Nibabel"):  # the two libraries understand some headers differently
            image: Any = nibabel.load(file)
            stored = "".join(nibabel.aff2axcodes(image.affine))
        else:
            stored = orienting.GetOrientationFromDirectionCosines(sitk.ReadImage(str(file)).GetDirection())
        turned = []
        for channel in channels:
            image = sitk.GetImageFromArray(channel)
            image.SetDirection(orienting.GetDirectionCosinesFromOrientation("RAS"))
            turned.append(sitk.GetArrayFromImage(sitk.DICOMOrient(image, stored)))
        return np.stack(turned)

    @property
    def label_manager(self) -> Any:
        """nnU-Net's view of the labels."""
        return self.manager.get_label_manager(self.dataset_json)

    @property
    def channels(self) -> int:
        """Number of channels of an image."""
        return number_of_channels(self.dataset_json)

    @property
    def network_channels(self) -> tuple[int, int]:
        """Channels that nnU-Net tells the network to take, and of its logits."""
        from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

        taken = determine_num_input_channels(self.manager, self.configuration_manager, self.dataset_json)
        return taken, self.label_manager.num_segmentation_heads

    @property
    def enhancements(self) -> list[dict]:
        """See :func:`nnunet_din.nnunet.plans.enhancements_of`."""
        return enhancements_of(self.configuration_manager.configuration)

    @cached_property
    def preprocessing(self) -> str:
        """What the plans say about preprocessing: the same text for models whose networks get the same data."""
        configuration = resolve(self.plans, self.configuration)
        settings = {key: value for key, value in configuration.items() if key not in _NOT_OF_IMAGES}
        settings |= {key: self.plans.get(key) for key in _OF_IMAGES}
        return json.dumps(settings, sort_keys=True)

    def preprocess(self, files: Sequence[Path]) -> tuple[np.ndarray, dict]:
        """What the network gets of a case, and what nnU-Net notes on the way there.

        Returns
        -------
        numpy.ndarray
            Shape ``(channels of the network, Z, Y, X)``, with the plans' spacing and order of axes.
        dict
            Properties of the case as nnU-Net notes them: spacing, shapes, the part that is left after cropping.

        Raises
        ------
        ValueError
            If a file cannot be read.
        """
        preprocessor = self.configuration_manager.preprocessor_class(verbose=False)
        names = [str(file) for file in files]
        data, _, properties = preprocessor.run_case(
            names, None, self.manager, self.configuration_manager, self.dataset_json
        )
        return data, properties

    def enhanced_on_image_grid(self, data: np.ndarray, properties: dict) -> np.ndarray:
        """The enhanced versions of a preprocessed case, brought back to the image's own grid for pictures.

        Parameters
        ----------
        data, properties
            What :meth:`preprocess` returns.

        Returns
        -------
        numpy.ndarray
            Shape ``(enhancements, C, Z, Y, X)`` on the grid of the image as :attr:`reader` reads it (resampled linearly
            from the network's), values in (-1, 1). What nnU-Net crops away is -1.

        Raises
        ------
        ValueError
            If the configuration has no enhancement.
        """
        from skimage.transform import resize

        count = len(self.enhancements)
        if not count:
            raise ValueError(
                f"Configuration '{self.configuration}' has no `enhancement`: it was not made by a DIN planner."
            )
        enhanced = data.reshape(1 + count, -1, *data.shape[1:])[1:]
        on_grid = np.full((*enhanced.shape[:2], *properties["shape_before_cropping"]), -1, np.float32)
        box = tuple(slice(*bounds) for bounds in properties["bbox_used_for_cropping"])
        shape = tuple(properties["shape_after_cropping_and_before_resampling"])
        for version, target in zip(enhanced, on_grid, strict=True):
            for channel, image in zip(version, target, strict=True):
                image[box] = resize(channel, shape, order=1, mode="edge", anti_aliasing=False)
        return on_grid.transpose([0, 1, *(2 + axis for axis in self.manager.transpose_backward)])
