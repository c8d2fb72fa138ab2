"""nnU-Net's preprocessor with the enhanced image as additional channels."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import blosc2
import numpy as np
from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_din.data.files import read_json, written_whole
from nnunet_din.data.integrity import WrongLabel, check_file, check_labels, find_outlier
from nnunet_din.enhancement import enhance
from nnunet_din.nnunet.folders import nnunet_folder
from nnunet_din.nnunet.labels import check_label_numbers, number_of_channels, read_dataset_json
from nnunet_din.nnunet.plans import enhancements_of

try:
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params
except ImportError:  # nnunetv2 2.7
    comp_blosc2_params = nnUNetDatasetBlosc2.comp_blosc2_params


class DINPreprocessor(DefaultPreprocessor):
    """Appends the C enhanced channels to the C channels that nnU-Net makes, with the numbers under ``enhancement`` in
    the plans; C channels for each where that is a list.

    The enhanced image is computed from the normalized and resampled one, of whole slices in the plane of the 2-D
    configuration, or of the whole volume where the plans say ``volumetric``. Training and prediction both go through
    :meth:`run_case_npy`, and nothing in it looks at the segmentation, so both see the same image.
    """

    def run(self, dataset_name_or_id, configuration_name, plans_identifier, num_processes) -> None:
        """Preprocess; also where the plans come from another data set (``nnUNetv2_move_plans_between_datasets``).

        nnU-Net copies ``dataset.json`` to the preprocessed data when it plans, and cannot preprocess without it.

        Raises
        ------
        ValueError
            If a training on the labels in ``dataset.json`` would fail.
        """
        name = maybe_convert_to_dataset_name(dataset_name_or_id)
        source = nnunet_folder("nnUNet_raw") / name / "dataset.json"
        copy = nnunet_folder("nnUNet_preprocessed") / name / "dataset.json"
        if source.is_file() and copy.parent.is_dir() and not copy.is_file():
            with written_whole(copy) as temporary:
                shutil.copyfile(source, temporary)
        if copy.is_file():
            check_label_numbers(read_dataset_json(copy))
        super().run(dataset_name_or_id, configuration_name, plans_identifier, num_processes)

    def run_case(self, image_files, seg_file, plans_manager, configuration_manager, dataset_json):
        """Preprocess a case as nnU-Net does; files are looked at first, and errors name them, whatever a reader raises.

        Raises
        ------
        ValueError
            If a file is not whole, or the case cannot be read or preprocessed.
        """
        for file in (*image_files, seg_file):
            if file is not None:
                check_file(Path(file))
        try:
            return super().run_case(image_files, seg_file, plans_manager, configuration_manager, dataset_json)
        except MemoryError:
            raise
        except WrongLabel as error:
            raise ValueError(f"{seg_file}: {error} Correct the label map, or dataset.json.") from error
        except Exception as error:
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise ValueError(f"{image_files[0]}: {reason}") from error

    def run_case_npy(
        self,
        data: np.ndarray,
        seg: np.ndarray | None,
        properties: dict,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict | str,
    ):
        """Preprocess as nnU-Net does, and append the enhanced channels.

        The returned data has shape ``(2C, Z, Y, X)``, originals first, or C more channels for each further
        enhancement.

        Raises
        ------
        ValueError
            If the image has another number of channels than the data set, an impossible spacing, NaN or infinite
            voxels, or a voxel that leaves all others one value, if the label map has several channels, another size
            than the image or values that the data set does not have, or the plans' enhancement is missing or unknown.
        """
        enhancements = _checked_enhancements(configuration_manager)
        description = read_json(Path(dataset_json)) if isinstance(dataset_json, str) else dataset_json
        _check_channels(data, description)
        spacing = np.array(properties["spacing"], dtype=float)
        if not (np.isfinite(spacing) & (spacing > 0)).all():
            raise ValueError(f"The spacing of the image is {_text(spacing)} mm, and must be positive.")
        if seg is not None:
            labels = plans_manager.get_label_manager(description)
            _check_shape(seg, data)
            ignored = [labels.ignore_label] if labels.has_ignore_label else []
            check_labels(seg, [0, *labels.all_labels, *ignored])
        raw = data
        try:
            data, seg, properties = super().run_case_npy(
                data, seg, properties, plans_manager, configuration_manager, dataset_json
            )
        except Exception as error:
            if nothing := _nothing_left(raw, properties, plans_manager, configuration_manager):
                raise ValueError(nothing) from error
            raise
        for c, (before, after) in enumerate(zip(raw, data, strict=True)):
            if place := find_outlier(before, after):
                raise ValueError(
                    f"Channel {c} has the value {before[place]:g} at (z, y, x) = {place}, beside which all others are "
                    "the same: the normalized image would be constant. Correct the voxel, or scale the image."
                )
        masked = configuration_manager.use_mask_for_norm
        mask = None
        if any(masked):
            mask = self._foreground(raw, properties, plans_manager, configuration_manager, data.shape[1:])
        self._warn_of_flat_slices(data, mask)
        versions = [data]
        for enhancement in enhancements:
            enhanced = enhance(data, mask=mask, **enhancement)
            if mask is not None:
                # nnU-Net leaves what is outside the mask at zero in these channels; so do we in their versions.
                for number in np.flatnonzero(masked):
                    enhanced[number][~mask] = 0
            versions.append(enhanced.astype(data.dtype, copy=False))
        return np.concatenate(versions), seg, properties

    def run_case_save(
        self, output_filename_truncated, image_files, seg_file, plans_manager, configuration_manager, dataset_json
    ):
        """Preprocess and save a case as nnU-Net does, compressed by LZ4 instead of LZ4HC.

        An enhanced image hardly compresses, and LZ4HC takes long to find that out: on ACDC's short-axis stacks it
        spends more time than reading, normalizing and enhancing together. Both have the same format for reading.
        """
        data, seg, properties = self.run_case(image_files, seg_file, plans_manager, configuration_manager, dataset_json)
        data = data.astype(np.float32, copy=False)
        seg = seg.astype(np.int16, copy=False)
        patch_size = tuple(configuration_manager.patch_size)
        blocks, chunks = comp_blosc2_params(data.shape, patch_size, data.itemsize)
        blocks_seg, chunks_seg = comp_blosc2_params(seg.shape, patch_size, seg.itemsize)
        nnUNetDatasetBlosc2.save_case(
            data,
            seg,
            properties,
            output_filename_truncated,
            chunks=chunks,
            blocks=blocks,
            chunks_seg=chunks_seg,
            blocks_seg=blocks_seg,
            codec=blosc2.Codec.LZ4,
            clevel=9,
        )

    @staticmethod
    def _foreground(raw, properties, plans_manager, configuration_manager, shape) -> np.ndarray:
        """nnU-Net's nonzero mask on the preprocessed grid, made from the image alone: ``seg`` holds labels in training
        only.
        """
        raw = raw.transpose([0, *[i + 1 for i in plans_manager.transpose_forward]])
        box = tuple(slice(*bounds) for bounds in properties["bbox_used_for_cropping"])
        mask = create_nonzero_mask(raw)[box]
        spacing = [properties["spacing"][i] for i in plans_manager.transpose_forward]
        target_spacing = [spacing[0], *configuration_manager.spacing][-3:]
        return (
            configuration_manager.resampling_fn_seg(mask[None].astype(np.int8), shape, spacing, target_spacing)[0] > 0
        )

    @staticmethod
    def _warn_of_flat_slices(data: np.ndarray, mask: np.ndarray | None) -> None:
        flat = np.ptp(data, axis=(2, 3)) < 1e-6
        if mask is not None:
            flat |= ~mask.any(axis=(1, 2))
        if flat.all(axis=1).any():
            warnings.warn(
                "The image (or one of its channels) is constant: its enhanced version is 0 everywhere.", stacklevel=2
            )
        elif flat.any():
            warnings.warn(
                f"{int(flat.any(axis=0).sum())} of {flat.shape[1]} slices are constant or empty: their enhanced "
                "version is 0.",
                stacklevel=2,
            )


def _check_channels(data: np.ndarray, dataset_json: dict) -> None:
    """Refuse another number of channels than the data set's, and voxels that are not finite.

    Raises
    ------
    ValueError
        The message says which.
    """
    channels = number_of_channels(dataset_json)
    if len(data) != channels:
        raise ValueError(
            f"The image has {len(data)} channels of {' x '.join(map(str, data.shape[1:]))} voxels, and the data set "
            f"has {channels}. nnU-Net takes one file a channel: CASE_0000, CASE_0001 and so on; pictures in colour, "
            "without a fourth channel for opacity, have three in one file."
        )
    for c, channel in enumerate(data):
        if not np.isfinite(channel).all():
            raise ValueError(
                f"Channel {c} has {np.count_nonzero(~np.isfinite(channel))} NaN or infinite voxels of {channel.size}. "
                "Repair the image, for example with numpy.nan_to_num."
            )


def _check_shape(seg: np.ndarray, data: np.ndarray) -> None:
    """Refuse a label map that does not have one number for each voxel of the image.

    Raises
    ------
    WrongLabel
        The message says what it has.
    """
    if len(seg) != 1:
        raise WrongLabel(
            f"it has {len(seg)} channels, as a picture in colours or a 4-D image has, and a label map has one number "
            "a voxel."
        )
    if seg.shape[1:] != data.shape[1:]:
        sizes = (" x ".join(map(str, array.shape[1:])) for array in (seg, data))
        raise WrongLabel("it has {} voxels, and the image has {}.".format(*sizes))


def _nothing_left(raw, properties, plans_manager, configuration_manager) -> str | None:
    """Why nnU-Net's preprocessing failed, if resampling left less than a voxel along an axis."""
    shape = properties.get("shape_after_cropping_and_before_resampling")
    if shape is None:
        return None
    spacing = [properties["spacing"][i] for i in plans_manager.transpose_forward]
    target = [spacing[0], *configuration_manager.spacing][-3:]
    if all(round(extent * old / new) >= 1 for extent, old, new in zip(shape, spacing, target, strict=True)):
        return None
    kept = "" if tuple(shape) == raw.shape[1:] else ", all that is not 0 in it,"
    return (
        f"{' x '.join(map(str, shape))} voxels of the image{kept} are less than one voxel at the spacing of the plans: "
        f"{_text(spacing)} mm in the file, {_text(target)} mm in the plans. Is it the right image, and its spacing in "
        "mm?"
    )


def _text(numbers) -> str:
    return " x ".join(f"{number:g}" for number in numbers)


def _checked_enhancements(configuration_manager: ConfigurationManager) -> list[dict]:
    """Return the configuration's enhancements.

    Raises
    ------
    ValueError
        If the configuration has none.
    """
    enhancements = enhancements_of(configuration_manager.configuration)
    if not enhancements:
        raise ValueError(
            "These plans have no `enhancement`: they were not made by a DIN planner. Run "
            "`nnUNetv2_plan_and_preprocess -d DATASET_ID -pl nnUNetPlannerDIN -c 2d` and use `-p nnUNetDINPlans`."
        )
    return enhancements
