"""Cases with the predictions of several models, from folders or from what nnU-Net has trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_din.data.images import Image, read_case, read_label_map
from nnunet_din.evaluation.metrics import mean_dice
from nnunet_din.nnunet.configurations import has_enhancement
from nnunet_din.nnunet.folders import dataset_name, nnunet_folder
from nnunet_din.nnunet.images import channel_files, channels_in, find_reader
from nnunet_din.nnunet.known_classes import check_plans
from nnunet_din.nnunet.labels import label_names, read_dataset_json, read_labels
from nnunet_din.nnunet.models import fold_folders, named_models
from nnunet_din.nnunet.planned import PlannedModel
from nnunet_din.nnunet.plans import read_plans
from nnunet_din.plotting.selection import crop_window, make_row

__all__ = [
    "Case",
    "Comparison",
    "choose_cases",
    "compare_folders",
    "compare_models",
    "read_row",
    "rows_of_prediction",
]


@dataclass(frozen=True)
class Case:
    """One case and its files.

    Attributes
    ----------
    name : str
        Name that nnU-Net gives the case.
    images : sequence of pathlib.Path
        Files of the channels, or one file that holds them.
    channel : int
        The channel to show, unless the image is in colour.
    truth : pathlib.Path or None
        Label map of the truth, if there is one.
    predictions : dict of str to pathlib.Path
        Label map that each model has predicted.
    """

    name: str
    images: Sequence[Path]
    channel: int
    truth: Path | None
    predictions: Mapping[str, Path]


@dataclass
class Comparison:
    """What is compared.

    Attributes
    ----------
    cases : list of Case
        Those to choose from, in alphabetical order.
    reader
        nnU-Net's reader of all files.
    structures : dict of str to tuple of int
        Values in the label maps that make up each structure; empty: every value of the truth is one.
    ignore : int or None
        Value of voxels of the truth that do not count.
    names : dict of int to str
        Names of the values for the legend.
    planned : PlannedModel or None
        The DIN model whose network's input is shown; None: images are enhanced as they are stored.
    """

    cases: list[Case]
    reader: Any
    structures: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ignore: int | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    planned: PlannedModel | None = None


def compare_folders(
    images: Path,
    predictions: Mapping[str, Path],
    truth: Path | None = None,
    chosen: Sequence[str] | None = None,
    channel: int = 0,
    description: Path | None = None,
    plans: Path | None = None,
) -> Comparison:
    """Compare what folders hold.

    Parameters
    ----------
    images
        Folder of images, called CASE_0000.nii.gz and so on.
    predictions
        Folder of each model's label maps, by the name to show.
    truth
        Folder of true label maps.
    chosen
        Names of cases; None: those that the first model has predicted.
    channel
        Channel to show.
    description
        The file ``dataset.json``, which names the labels; None: looked for beside the folders.
    plans
        Plans of a DIN planner, for what the network gets.

    Raises
    ------
    FileNotFoundError, ValueError
        If a folder or a file is missing, or the plans are not a DIN planner's.
    """
    for folder in (images, *([truth] if truth else []), *predictions.values()):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder.")
    ending = _file_ending(images, channel)
    first = next(iter(predictions.values()))
    names = chosen or sorted(path.name[: -len(ending)] for path in first.glob(f"*{ending}"))
    if not names:
        raise FileNotFoundError(f"{first} holds no predictions called *{ending}.")
    places = [*predictions.values(), *([truth.parent] if truth else []), images.parent]
    description = description or next((p for p in (f / "dataset.json" for f in places) if p.is_file()), None)
    planned = None
    if plans:
        planned = _planned(plans, "2d", description)
        if planned is None:
            raise ValueError(f"{plans} has no `enhancement`: these plans were not made by a DIN planner.")
    cases = []
    for name in names:
        of_models = {model: folder / f"{name}{ending}" for model, folder in predictions.items()}
        for model, path in of_models.items():
            if not path.is_file():
                raise FileNotFoundError(f"{model} has no prediction of the case {name}: {path} does not exist.")
        shown, true = images / f"{name}_{channel:04d}{ending}", truth / f"{name}{ending}" if truth else None
        for what, file in (("image", shown), ("ground truth", true)):
            if file is not None and not file.is_file():
                raise FileNotFoundError(f"The case {name} has no {what}: {file} does not exist.")
        files, number = [shown], 0
        if planned:
            files, number = channel_files(images / f"{name}_0000{ending}", planned.channels, ending), channel
        cases.append(Case(name, files, number, true, of_models))
    content = read_dataset_json(description) if description else None
    reader = planned.reader if planned else find_reader(content, cases[0].images[0])
    return _described(cases, reader, description, planned)


def compare_models(
    dataset: str,
    models: Sequence[str] | None = None,
    folds: Sequence[str] | None = None,
    chosen: Sequence[str] | None = None,
    channel: int = 0,
) -> Comparison:
    """Compare the validation predictions of models that nnU-Net has trained.

    Parameters
    ----------
    dataset
        Number or name of the data set.
    models
        As in :func:`nnunet_din.nnunet.models.named_models`. Of all models, those without predictions are left out.
    folds
        As in :func:`nnunet_din.nnunet.models.fold_folders`.
    chosen
        Names of cases; None: those that all models have predicted.
    channel
        Channel to show.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is nothing to compare, or a case, a prediction or a channel is missing.
    """
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    raw = nnunet_folder("nnUNet_raw") / dataset_name(dataset)
    description = raw / "dataset.json"
    content = read_dataset_json(description)
    ending = content["file_ending"]
    predictions: dict[str, dict[str, Path]] = {}
    planned: PlannedModel | None = None
    plans: dict | None = None
    for name, model in named_models(dataset, models).items():
        folders = [folder / "validation" for folder in fold_folders(model, folds).values()]
        found = {path.name[: -len(ending)]: path for folder in folders for path in sorted(folder.glob(f"*{ending}"))}
        if not found and models:
            where = ", ".join(map(str, folders)) or model.folder
            raise FileNotFoundError(
                f"{model.name} has no validation predictions in {where}: nnUNetv2_train writes them."
            )
        if not found:
            print(f"Left out: {model.name}, which has no validation predictions.")
            continue
        predictions[name] = found
        plans = plans or read_plans(model.folder / "plans.json")
        planned = planned or _planned(model.folder / "plans.json", model.name.split("__")[-1], description)
    if not predictions:
        raise FileNotFoundError("No model has validation predictions: nnUNetv2_train writes them at its end.")
    common = sorted(set.intersection(*map(set, predictions.values())))
    for case in chosen or ():
        for name, found in predictions.items():
            if case not in found:
                raise FileNotFoundError(f"{name} has no validation prediction of the case {case}.")
    if not common:
        raise ValueError(f"No case was predicted by all of {', '.join(predictions)}: choose other folds or models.")
    files = get_filenames_of_train_images_and_targets(str(raw), content)
    cases = []
    for name in chosen or common:
        if name not in files:
            raise FileNotFoundError(f"The case {name} was predicted and is not in {raw} any more.")
        images = [Path(image) for image in files[name]["images"]]
        channels = len(images) if len(images) > 1 else channels_in(images[0])
        if not 0 <= channel < channels:
            raise ValueError(f"--channel {channel}: the case {name} has {channels} channels, counted from 0.")
        of_models = {model: found[name] for model, found in predictions.items()}
        cases.append(Case(name, images, channel, Path(files[name]["label"]), of_models))
    assert plans is not None  # there are predictions
    return _described(cases, PlannedModel(plans, content, "2d").reader, description, planned)


def _described(cases: list[Case], reader: Any, description: Path | None, planned: PlannedModel | None) -> Comparison:
    if description is None:
        return Comparison(cases, reader)
    labels = read_labels(description)
    names = label_names(read_dataset_json(description))
    return Comparison(cases, reader, labels.structures, labels.ignore, names, planned)


def _planned(plans: Path, configuration: str, description: Path | None) -> PlannedModel | None:
    """What the plans say about the network's input; None if they are not a DIN planner's."""
    content = read_plans(plans)
    if not has_enhancement(content, configuration):
        return None
    if description is None:
        raise FileNotFoundError(f"{plans} belongs to a data set whose dataset.json is needed: --dataset-json FILE.")
    dataset_json = read_dataset_json(description)
    check_plans(content, configuration, dataset_json)
    return PlannedModel(content, dataset_json, configuration)


def _file_ending(images: Path, channel: int) -> str:
    mark = f"_{channel:04d}."
    for path in sorted(images.iterdir()):
        if mark in path.name and not path.name.startswith("."):
            return path.name[path.name.rindex(mark) + len(mark) - 1 :]
    raise FileNotFoundError(
        f"{images} holds no image called CASE_{channel:04d}.nii.gz, CASE_{channel:04d}.png or alike."
    )


def choose_cases(comparison: Comparison, chosen: bool = False) -> list[tuple[Case, str]]:
    """Choose the cases to draw, each with a remark: those of best, median and worst Dice of the first model, or all of
    them if they were chosen by name.
    """
    cases = comparison.cases
    if chosen:
        return [(case, "") for case in cases]
    if cases[0].truth is None:
        return [(case, "") for case in cases[:3]]
    dice = {case.name: next(iter(_dice_of_models(case, comparison, first_only=True).values())) for case in cases}
    ranked = sorted((case for case in cases if not np.isnan(dice[case.name])), key=lambda case: -dice[case.name])
    if not ranked:
        return [(case, "") for case in cases[:3]]
    # Where two of these are the same case, the later word holds.
    words = {ranked[len(ranked) // 2].name: "median", ranked[-1].name: "worst", ranked[0].name: "best"}
    return [(case, f"{words[case.name]} of {len(ranked)}") for case in ranked if case.name in words]


def _dice_of_models(case: Case, comparison: Comparison, first_only: bool = False) -> dict[str, float]:
    """Compute the mean Dice of each model, or of the first one only."""
    if case.truth is None:
        raise ValueError(f"The case {case.name} has no truth to compare with.")
    truth = read_label_map(case.truth, comparison.reader)
    dice = {}
    for model, path in list(case.predictions.items())[: 1 if first_only else None]:
        prediction = read_label_map(path, comparison.reader)
        _check_shape(path, prediction, case.truth, truth)
        dice[model] = mean_dice(prediction, truth, comparison.structures, comparison.ignore)
    return dice


def read_row(
    case: Case,
    comparison: Comparison,
    remark: str = "",
    axis: int | None = None,
    index: int | None = None,
    boxes: int = 1,
    crop: bool = True,
) -> dict:
    """Make the row of a case for :func:`nnunet_din.plotting.panel.panel`: read its files, slice them, write the title.

    Parameters
    ----------
    case, comparison
        The case, and what is known of its labels.
    remark
        Added to the title.
    axis
        Slice axis in the order z, y, x; None: the one of largest spacing.
    index
        Slice; None: the one where the models differ most.
    boxes, crop
        As in :func:`nnunet_din.plotting.selection.make_row`.

    Raises
    ------
    ValueError
        If there is no such slice, or shapes differ.
    """
    image = read_case(case.images, comparison.reader)
    axis = image.slice_axis if image.flat or axis is None else axis
    shown = slice(None) if image.color else slice(case.channel, case.channel + 1)
    shape = image.array.shape[1:]
    if index is not None and not 0 <= index < shape[axis]:
        raise ValueError(f"--slice {index}: the case {case.name} has {shape[axis]} slices, counted from 0.")

    def slices_of(path: Path) -> np.ndarray:
        label_map = read_label_map(path, comparison.reader)
        _check_shape(path, label_map, case.images[0], image.array[0])
        return _slices(label_map, axis)

    maps = {model: slices_of(path) for model, path in case.predictions.items()}
    truth = None if case.truth is None else slices_of(case.truth)
    enhanced = None
    if comparison.planned is not None:  # the first enhancement that the network gets
        data, properties = comparison.planned.preprocess(case.images)
        enhanced = _channel_slices(comparison.planned.enhanced_on_image_grid(data, properties)[0][shown], axis)
    try:
        row = make_row(
            _channel_slices(image.array[shown], axis),
            maps,
            truth,
            color=image.color,
            aspect=_aspect(image, axis),
            index=index,
            ignore=comparison.ignore,
            boxes=boxes,
            crop=crop,
            enhanced=enhanced,
        )
    except ValueError as error:
        raise ValueError(f"{case.images[0]}: {error}") from error
    title = case.name if image.flat else f"{case.name}, slice {row['index']}"
    title += f" ({remark})" if remark else ""
    if truth is not None:
        dice = _dice_of_models(case, comparison)
        # Names may hold commas.
        title += ": Dice " + "; ".join(f"{name} {value:.3f}" for name, value in dice.items())
    return {**row, "name": title}


def rows_of_prediction(
    image: Image, label_map: np.ndarray, enhanced: np.ndarray | None = None, slices: int = 3
) -> list[dict]:
    """Make rows for :func:`nnunet_din.plotting.panel.panel` of slices spread over what was predicted.

    Parameters
    ----------
    image
        The case; its first channel or its colours are shown.
    label_map
        Its prediction, shape ``(Z, Y, X)``.
    enhanced
        Its enhanced version, shape ``(C, Z, Y, X)``, where there is one.
    slices
        Largest number of rows.
    """
    axis, aspect = image.slice_axis, _aspect(image, image.slice_axis)
    shown = slice(None) if image.color else slice(1)
    labels, volume = _slices(label_map, axis), _channel_slices(image.array[shown], axis)
    if enhanced is not None:
        enhanced = _channel_slices(enhanced[shown], axis)
    # One part of the image for all slices.
    y, x = crop_window(np.any(labels > 0, axis=0), aspect)
    labels, volume = labels[:, y, x], volume[:, :, y, x]
    enhanced = None if enhanced is None else enhanced[:, :, y, x]
    labelled = np.flatnonzero((labels > 0).any(axis=(1, 2)))
    if not len(labelled):
        labelled = np.array([len(labels) // 2])
    # The middles of as many equal parts: the ends of a structure show little.
    places = (np.arange(slices) + 0.5) / slices
    chosen = sorted({int(labelled[int(place * len(labelled))]) for place in places})
    rows = []
    for index in chosen:
        row = make_row(
            volume,
            {"Prediction": labels},
            color=image.color,
            aspect=aspect,
            index=index,
            boxes=0,
            crop=False,
            enhanced=volume if enhanced is None else enhanced,
        )
        if enhanced is None:
            del row["enhanced"]
        rows.append({**row, "name": "" if image.flat else f"slice {index}"})
    return rows


def _aspect(image: Image, axis: int) -> float:
    """Height of a pixel of a slice, in its widths."""
    height, width = (size for number, size in enumerate(image.spacing) if number != axis)
    return height / width


def _channel_slices(channels: np.ndarray, axis: int) -> np.ndarray:
    """Slices ``(C, Z, H, W)`` of channels ``(C, Z, Y, X)``, see :func:`_slices`."""
    return np.stack([_slices(channel, axis) for channel in channels])


def _slices(volume: np.ndarray, axis: int) -> np.ndarray:
    """Cut a volume (Z, Y, X) into slices along an axis; where z runs along the rows, it points upwards."""
    slices = np.moveaxis(volume, axis, 0)
    return slices if axis == 0 else slices[:, ::-1]


def _check_shape(path: Path, array: np.ndarray, other_path: Path, other: np.ndarray) -> None:
    if array.shape != other.shape:
        raise ValueError(f"{path} has shape {array.shape} and {other_path} has {other.shape}: they must be the same.")
