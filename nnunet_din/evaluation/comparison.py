"""Cases with the predictions of several models, from folders or from what nnU-Net has trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_din.data.images import Image, read_case, read_label_map
from nnunet_din.evaluation.metrics import mean_dice
from nnunet_din.nnunet.folders import dataset_name, nnunet_folder
from nnunet_din.nnunet.images import find_reader
from nnunet_din.nnunet.labels import label_names, read_dataset_json, read_labels
from nnunet_din.nnunet.models import fold_folders, named_models
from nnunet_din.nnunet.planned import PlannedModel
from nnunet_din.nnunet.plans import has_enhancement, read_plans
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
        If a folder has no images or predictions, or the plans are not a DIN planner's.
    """
    ending = _file_ending(images)
    first = next(iter(predictions.values()))
    names = chosen or sorted(path.name.removesuffix(ending) for path in first.glob(f"*{ending}"))
    if not names:
        raise FileNotFoundError(f"{first} holds no predictions called *{ending}.")
    cases = []
    for name in names:
        channels = sorted(images.glob(f"{escape(name)}_[0-9][0-9][0-9][0-9]{ending}"))
        if not channels:
            raise FileNotFoundError(f"The case {name} has no image in {images}.")
        of_models = {model: folder / f"{name}{ending}" for model, folder in predictions.items()}
        cases.append(Case(name, channels, channel, truth / f"{name}{ending}" if truth else None, of_models))
    if description is None:
        folders = [*predictions.values(), *([truth.parent] if truth else []), images.parent]
        description = next((path for path in (folder / "dataset.json" for folder in folders) if path.is_file()), None)
    planned = _planned(plans, "2d", description) if plans else None
    if plans and planned is None:
        raise ValueError(f"{plans} has no `enhancement`: these plans were not made by a DIN planner.")
    return _described(cases, description, planned)


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
    FileNotFoundError
        If there is nothing to compare, or a chosen case was not predicted by all models.
    """
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    raw = nnunet_folder("nnUNet_raw") / dataset_name(dataset)
    description = raw / "dataset.json"
    content = read_dataset_json(description)
    ending = content["file_ending"]
    predictions: dict[str, dict[str, Path]] = {}
    planned: PlannedModel | None = None
    for name, model in named_models(dataset, models).items():
        folders = [folder / "validation" for folder in fold_folders(model, folds).values()]
        found = {path.name.removesuffix(ending): path for folder in folders for path in folder.glob(f"*{ending}")}
        if found:
            predictions[name] = found
            planned = planned or _planned(model.folder / "plans.json", model.name.split("__")[-1], description)
        elif models:
            raise FileNotFoundError(f"{model.name} has no validation predictions: nnUNetv2_train writes them.")
        else:
            print(f"Left out: {model.name}, which has no validation predictions.")
    if not predictions:
        raise FileNotFoundError("No model has validation predictions: nnUNetv2_train writes them at its end.")
    files = get_filenames_of_train_images_and_targets(str(raw), content)
    common = sorted(set(files).intersection(*predictions.values()))
    names = chosen or common
    absent = [name for name in names if name not in common]
    if absent or not names:
        what = f"{absent[0]} was not" if absent else "No case was"
        raise FileNotFoundError(f"{what} predicted by all of {', '.join(predictions)}: choose other models or folds.")
    cases = [
        Case(
            name,
            [Path(image) for image in files[name]["images"]],
            channel,
            Path(files[name]["label"]),
            {model: found[name] for model, found in predictions.items()},
        )
        for name in names
    ]
    return _described(cases, description, planned)


def _described(cases: list[Case], description: Path | None, planned: PlannedModel | None) -> Comparison:
    content = read_dataset_json(description) if description else None
    reader = planned.reader if planned else find_reader(content, cases[0].images[0])
    if content is None or description is None:
        return Comparison(cases, reader)
    labels = read_labels(description)
    return Comparison(cases, reader, labels.structures, labels.ignore, label_names(content), planned)


def _planned(plans: Path, configuration: str, description: Path | None) -> PlannedModel | None:
    """What the plans say about the network's input; None if they are not a DIN planner's."""
    content = read_plans(plans)
    if not has_enhancement(content, configuration):
        return None
    if description is None:
        raise FileNotFoundError(f"{plans} belongs to a data set whose dataset.json is needed: --dataset-json FILE.")
    return PlannedModel.read(plans, description, configuration)


def _file_ending(images: Path) -> str:
    for path in sorted(images.iterdir()):
        name, mark, ending = path.name.rpartition("_0000.")
        if mark and not name.startswith("."):
            return f".{ending}"
    raise FileNotFoundError(f"{images} holds no image called CASE_0000.nii.gz, CASE_0000.png or alike.")


def choose_cases(comparison: Comparison, chosen: bool = False) -> list[tuple[Case, str]]:
    """Choose the cases to draw, each with a remark: those of best, median and worst Dice of the first model, or all of
    them if they were chosen by name.
    """
    cases = comparison.cases
    if chosen:
        return [(case, "") for case in cases]
    dice = {case.name: _dice_of_first(case, comparison) for case in cases}
    ranked = sorted((case for case in cases if not math.isnan(dice[case.name])), key=lambda case: -dice[case.name])
    if not ranked:
        return [(case, "") for case in cases[:3]]
    # Where two of these are the same case, the later word holds.
    words = {len(ranked) // 2: "median", len(ranked) - 1: "worst", 0: "best"}
    return [(ranked[place], f"{words[place]} of {len(ranked)}") for place in sorted(words)]


def _dice_of_first(case: Case, comparison: Comparison) -> float:
    """Mean Dice of the first model; NaN without a truth."""
    if case.truth is None:
        return math.nan
    truth = read_label_map(case.truth, comparison.reader)
    prediction = _read_labels(next(iter(case.predictions.values())), comparison.reader, truth.shape)
    return mean_dice(prediction, truth, comparison.structures, comparison.ignore)


def _read_labels(path: Path, reader: Any, shape: Sequence[int]) -> np.ndarray:
    labels = read_label_map(path, reader)
    if labels.shape != tuple(shape):
        raise ValueError(f"{path} has shape {labels.shape}, and the others of its case have {tuple(shape)}.")
    return labels


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
        Addition to the title.
    axis
        Slice axis in the order z, y, x; None: the one of largest spacing.
    index
        Slice; None: the one where the models differ most.
    boxes, crop
        As in :func:`nnunet_din.plotting.selection.make_row`.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing, shapes differ, or there is no such slice or channel.
    """
    image = read_case(case.images, comparison.reader)
    axis = image.slice_axis if image.flat or axis is None else axis
    channels, *shape = image.array.shape
    for option, number, count in (("channel", case.channel, channels), ("slice", index or 0, shape[axis])):
        if not 0 <= number < count:
            raise ValueError(f"--{option} {number}: the case {case.name} has {count} of them, counted from 0.")
    shown = slice(None) if image.color else slice(case.channel, case.channel + 1)

    maps = {model: _read_labels(path, comparison.reader, shape) for model, path in case.predictions.items()}
    truth = None if case.truth is None else _read_labels(case.truth, comparison.reader, shape)
    enhanced = None
    if comparison.planned is not None:  # the first enhancement that the network gets
        data, properties = comparison.planned.preprocess(case.images)
        enhanced = _slices(comparison.planned.enhanced_on_image_grid(data, properties)[0][shown], axis)
    row = make_row(
        _slices(image.array[shown], axis),
        {model: _slices(labels, axis) for model, labels in maps.items()},
        None if truth is None else _slices(truth, axis),
        color=image.color,
        aspect=_aspect(image, axis),
        index=index,
        ignore=comparison.ignore,
        boxes=boxes,
        crop=crop,
        enhanced=enhanced,
    )
    title = case.name if image.flat else f"{case.name}, slice {row['index']}"
    title += f" ({remark})" if remark else ""
    if truth is not None:
        structures, ignore = comparison.structures, comparison.ignore
        dice = {model: mean_dice(labels, truth, structures, ignore) for model, labels in maps.items()}
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
    axis = image.slice_axis
    aspect = _aspect(image, axis)
    labels = _slices(label_map, axis)
    y, x = crop_window(np.any(labels > 0, axis=0), aspect)  # one for all slices
    labelled = np.flatnonzero((labels > 0).any(axis=(1, 2)))
    if not len(labelled):
        labelled = np.array([len(labels) // 2])
    # The middles of as many equal parts: the ends of a structure show little.
    places = (np.arange(slices) + 0.5) / slices

    def picture(channels: np.ndarray, index: int) -> np.ndarray:
        shown = _slices(channels, axis)[:, index, y, x]
        return np.moveaxis(shown, 0, -1) if image.color else shown[0]

    return [
        {
            "name": "" if image.flat else f"slice {index}",
            "image": picture(image.array, index),
            "enhanced": None if enhanced is None else picture(enhanced, index),
            "prediction": labels[index, y, x],
            "aspect": aspect,
        }
        for index in sorted({int(labelled[int(place * len(labelled))]) for place in places})
    ]


def _aspect(image: Image, axis: int) -> float:
    """Height of a pixel of a slice, in its widths."""
    height, width = (size for number, size in enumerate(image.spacing) if number != axis)
    return height / width


def _slices(volume: np.ndarray, axis: int) -> np.ndarray:
    """Slices ``(..., S, H, W)`` of a volume ``(..., Z, Y, X)`` along an axis; where z runs along the rows, it points
    upwards.
    """
    slices = np.moveaxis(volume, axis - 3, -3)
    return slices if axis == 0 else slices[..., ::-1, :]
