"""What there is to score: the trained models of a data set, and folders of predictions."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: Fold of predictions that come from a folder and not from cross-validation.
NO_FOLD = "-"


@dataclass(frozen=True)
class Model:
    """A trained model in nnU-Net's results.

    Attributes
    ----------
    name : str
        ``TRAINER__PLANS__CONFIGURATION``, the name of its folder.
    folder : pathlib.Path
        Holds ``plans.json``, ``dataset.json`` and the folds.
    folds : dict of str to pathlib.Path
        Folders of the folds of cross-validation that were begun, by their number. A training on all cases is none.
    """

    name: str
    folder: Path
    folds: Mapping[str, Path]


@dataclass(frozen=True)
class ScoredCase:
    """A prediction and its truth.

    Attributes
    ----------
    model, fold, case : str
        Where it belongs. ``fold`` is :data:`NO_FOLD` for predictions that are not from cross-validation.
    prediction, truth : pathlib.Path
        Label maps.
    """

    model: str
    fold: str
    case: str
    prediction: Path
    truth: Path


@dataclass(frozen=True)
class Labels:
    """The structures of a data set.

    Attributes
    ----------
    structures : dict of str to tuple of int
        Values in the truth that make up each structure; several for a region.
    ignore : int or None
        Value of voxels that do not count.
    file_ending : str
        Of the label maps.
    """

    structures: Mapping[str, tuple[int, ...]]
    ignore: int | None = None
    file_ending: str = ".nii.gz"


@dataclass
class Collection:
    """What was found and what is missing.

    Attributes
    ----------
    cases : list of ScoredCase
        To be scored.
    missing : list of str
        A sentence for each fold or case that is not there.
    models : dict of str to Model
        The trained models among the names; folders of predictions have none.
    """

    cases: list[ScoredCase] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    models: dict[str, Model] = field(default_factory=dict)


def nnunet_folder(variable: str) -> Path:
    """One of nnU-Net's folders.

    Raises
    ------
    ValueError
        If the environment variable is not set.
    """
    if not os.environ.get(variable):
        raise ValueError(f"The environment variable {variable} is not set: set nnU-Net's three folders first.")
    return Path(os.environ[variable])


def dataset_name(dataset: str | int) -> str:
    """Name of a data set, ``DatasetXXX_Name``, from its number or name; it is looked for in all of nnU-Net's folders.

    Raises
    ------
    FileNotFoundError
        If no folder holds it.
    ValueError
        If several data sets have the number, or no folder is set.
    """
    folders = [nnunet_folder("nnUNet_results")]
    folders += [Path(os.environ[v]) for v in ("nnUNet_raw", "nnUNet_preprocessed") if os.environ.get(v)]
    pattern = f"Dataset{int(dataset):03d}_*" if str(dataset).isdecimal() else str(dataset)
    names = sorted({path.name for folder in folders for path in folder.glob(pattern) if path.is_dir()})
    if not names:
        raise FileNotFoundError(f"No data set {pattern} in {', '.join(map(str, folders))}.")
    if len(names) > 1:
        raise ValueError(f"Several data sets have the number {dataset}: {', '.join(names)}. Rename all but one.")
    return names[0]


def find_models(dataset: str | int) -> list[Model]:
    """Every trained model of a data set, in alphabetical order.

    Raises
    ------
    FileNotFoundError
        If the data set is unknown.
    """
    models = []
    for folder in sorted((nnunet_folder("nnUNet_results") / dataset_name(dataset)).glob("*__*__*")):
        if not (folder / "plans.json").is_file():
            continue
        folds = {path.name.removeprefix("fold_"): path for path in folder.glob("fold_*") if path.is_dir()}
        folds = {fold: folds[fold] for fold in sorted((f for f in folds if f.isdecimal()), key=int)}
        models.append(Model(folder.name, folder, folds))
    return models


def choose_models(models: Sequence[Model], names: Sequence[str] | None) -> list[Model]:
    """The models with the given names, in the given order; all of them without names.

    Raises
    ------
    ValueError
        If a name is not among them; the message lists those that are.
    """
    if not names:
        return list(models)
    known = {model.name: model for model in models}
    for name in names:
        if name not in known:
            raise ValueError(f"No trained model is called {name}. There are: {', '.join(known) or 'none'}.")
    return [known[name] for name in dict.fromkeys(names)]


def read_labels(dataset_json: Path) -> Labels:
    """The structures named in a ``dataset.json``.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file does not exist or names no structures.
    """
    if not dataset_json.is_file():
        raise FileNotFoundError(f"{dataset_json} does not exist: it names the structures.")
    content = json.loads(dataset_json.read_text(encoding="utf-8"))
    structures, ignore = {}, None
    for name, value in content.get("labels", {}).items():
        values = tuple(value) if isinstance(value, list) else (int(value),)
        if name == "ignore":
            ignore = values[0]
        elif values != (0,):
            structures[name] = values
    if not structures:
        raise ValueError(f"{dataset_json} names no labels but the background.")
    return Labels(structures, ignore, content.get("file_ending", ".nii.gz"))


def truth_folder(dataset: str | int) -> Path:
    """Folder with the label maps of a data set's training cases: nnU-Net's copy of them, or the raw ones.

    Raises
    ------
    FileNotFoundError
        If neither exists.
    """
    name = dataset_name(dataset)
    folders = [
        Path(os.environ[variable], name, sub)
        for variable, sub in (("nnUNet_preprocessed", "gt_segmentations"), ("nnUNet_raw", "labelsTr"))
        if os.environ.get(variable)
    ]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"No label maps for {name}: looked for {' and '.join(map(str, folders)) or 'nothing'}.")


def collect_cross_validation(
    dataset: str | int, labels: Labels, models: Mapping[str, Model], folds: Sequence[str] | None = None
) -> Collection:
    """The cross-validation predictions of a data set's models.

    Parameters
    ----------
    dataset
        Number or name.
    labels
        Its structures.
    models
        Those to take, by the name to show.
    folds
        Folds that every model should have; None: those that any of them has begun.

    Raises
    ------
    ValueError, FileNotFoundError
        If there is no such data set, or no label map for a predicted case.
    """
    truth = truth_folder(dataset)
    collection = Collection(models=dict(models))
    expected_cases = _validation_cases(dataset)
    every_fold = list(folds or sorted({fold for model in models.values() for fold in model.folds}, key=int))
    for name, model in models.items():
        for fold in every_fold:
            validation = model.folds[fold] / "validation" if fold in model.folds else None
            predicted = _label_maps(validation, labels.file_ending) if validation and validation.is_dir() else {}
            if not predicted:
                reason = "was not trained" if fold not in model.folds else "has no validation predictions yet"
                collection.missing.append(f"{name}: fold {fold} {reason}")
                continue
            absent = sorted(set(expected_cases.get(fold, ())) - set(predicted))
            collection.missing += [f"{name}: fold {fold} has no prediction of {case}" for case in absent]
            for case, path in predicted.items():
                collection.cases.append(ScoredCase(name, fold, case, path, truth / path.name))
    _check_truth(collection)
    return collection


def collect_predictions(folders: Mapping[str, Path], truth: Path, file_ending: str) -> Collection:
    """The predictions in folders, one a model, for the label maps in the folder ``truth``.

    Raises
    ------
    FileNotFoundError
        If a folder does not exist or holds no label maps.
    """
    collection = Collection()
    for folder in (truth, *folders.values()):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder.")
    true_maps = _label_maps(truth, file_ending)
    if not true_maps:
        raise FileNotFoundError(f"{truth} holds no label maps called *{file_ending}.")
    for name, folder in folders.items():
        predicted = _label_maps(folder, file_ending)
        if not predicted:
            raise FileNotFoundError(f"{folder} holds no label maps called *{file_ending}.")
        for case, path in true_maps.items():
            if case in predicted:
                collection.cases.append(ScoredCase(name, NO_FOLD, case, predicted[case], path))
            else:
                collection.missing.append(f"{name}: no prediction of {case}")
        without_truth = sorted(set(predicted) - set(true_maps))
        collection.missing += [f"{name}: {case} is predicted and has no truth" for case in without_truth]
    return collection


def _label_maps(folder: Path, file_ending: str) -> dict[str, Path]:
    """Case -> file, in alphabetical order."""
    paths = sorted(path for path in folder.glob(f"*{file_ending}") if not path.name.startswith("."))
    return {path.name[: -len(file_ending)]: path for path in paths}


def _validation_cases(dataset: str | int) -> dict[str, list[str]]:
    """Fold -> its validation cases, from nnU-Net's splits; empty where there are none."""
    if not os.environ.get("nnUNet_preprocessed"):
        return {}
    path = Path(os.environ["nnUNet_preprocessed"], dataset_name(dataset), "splits_final.json")
    if not path.is_file():
        return {}
    return {str(i): list(split["val"]) for i, split in enumerate(json.loads(path.read_text(encoding="utf-8")))}


def _check_truth(collection: Collection) -> None:
    for case in collection.cases:
        if not case.truth.is_file():
            raise FileNotFoundError(f"{case.truth} does not exist, and {case.prediction} is a prediction of that case.")
