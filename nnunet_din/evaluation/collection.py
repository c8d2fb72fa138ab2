"""What there is to score: the validation predictions of trained models, and folders of predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_din.data.files import read_json
from nnunet_din.nnunet.folders import truth_folder, validation_cases
from nnunet_din.nnunet.labels import Labels
from nnunet_din.nnunet.models import Model

#: Fold of predictions that come from a folder and not from cross-validation.
NO_FOLD = "-"


@dataclass(frozen=True)
class ScoredCase:
    """A prediction and its truth.

    Attributes
    ----------
    model, fold, case : str
        Where the prediction belongs. ``fold`` is :data:`NO_FOLD` for predictions that are not from cross-validation.
    prediction, truth : pathlib.Path
        Files of the two label maps.
    reader : str or None
        Name of nnU-Net's reader in the plans of the prediction, if they are known.
    """

    model: str
    fold: str
    case: str
    prediction: Path
    truth: Path
    reader: str | None = None


@dataclass
class Collection:
    """What was found and what is missing.

    Attributes
    ----------
    cases : list of ScoredCase
        The cases that can be scored.
    missing : list of str
        A sentence for each fold or case that is not there.
    models : dict of str to Model
        The trained models among the names; folders of predictions have none.
    """

    cases: list[ScoredCase] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    models: dict[str, Model] = field(default_factory=dict)


def collect_cross_validation(
    dataset: str | int, labels: Labels, models: Mapping[str, Model], folds: Sequence[str] | None = None
) -> Collection:
    """The cross-validation predictions of a data set's models.

    Parameters
    ----------
    dataset
        Number or name of the data set.
    labels
        Structures of the data set.
    models
        Models to take, by the name to show.
    folds
        Folds that every model should have; None: those that any of them has begun.

    Raises
    ------
    ValueError, FileNotFoundError
        If there is no such data set, or two folds of a model predict the same case.
    """
    truth = truth_folder(dataset)
    collection = Collection(models=dict(models))
    expected_cases = validation_cases(dataset)
    for name, model in models.items():
        reader = _reader(model.folder)
        fold_of: dict[str, str] = {}
        for fold in folds or begun_folds(models):
            folder = model.folder / f"fold_{fold}"
            predicted = _label_maps(folder / "validation", labels.file_ending)
            if not predicted:
                reason = "has no validation predictions yet" if folder.is_dir() else "was not trained"
                collection.missing.append(f"{name}: fold {fold} {reason}")
                continue
            for case in sorted(set(expected_cases.get(fold, ())) - set(predicted)):
                collection.missing.append(f"{name}: fold {fold} has no prediction of {case}")
            for case, path in predicted.items():
                if (other := fold_of.setdefault(case, fold)) != fold:
                    raise ValueError(
                        f"Folds {other} and {fold} of {name} both predict {case}, so they are not one "
                        "cross-validation. Choose folds with -f."
                    )
                collection.cases.append(ScoredCase(name, fold, case, path, truth / path.name, reader))
    return collection


def begun_folds(models: Mapping[str, Model]) -> list[str]:
    """Numbers of the folds that any of the models has begun."""
    return sorted({fold for model in models.values() for fold in model.folds}, key=int)


def collect_predictions(folders: Mapping[str, Path], truth: Path, file_ending: str) -> Collection:
    """The predictions in folders, one a model, for the label maps in the folder ``truth``.

    Raises
    ------
    FileNotFoundError
        If a folder does not exist or holds no label maps.
    """
    collection = Collection()
    maps = {folder: _label_maps(folder, file_ending) for folder in (truth, *folders.values())}
    for folder, found in maps.items():
        if not found:
            raise FileNotFoundError(f"{folder} holds no label maps called *{file_ending}.")
    true_maps = maps[truth]
    for name, folder in folders.items():
        predicted, reader = maps[folder], _reader(folder)
        for case, path in true_maps.items():
            if case in predicted:
                collection.cases.append(ScoredCase(name, NO_FOLD, case, predicted[case], path, reader))
            else:
                collection.missing.append(f"{name}: no prediction of {case}")
        without_truth = sorted(set(predicted) - set(true_maps))
        collection.missing += [f"{name}: {case} is predicted and has no truth" for case in without_truth]
    return collection


def _reader(folder: Path) -> str | None:
    """Name of nnU-Net's reader in the plans that lie in a folder of a model, or of its predictions; None without."""
    path = folder / "plans.json"
    plans = read_json(path) if path.is_file() else None
    return plans.get("image_reader_writer") if isinstance(plans, dict) else None


def _label_maps(folder: Path, file_ending: str) -> dict[str, Path]:
    """List the label maps of a folder by case, in alphabetical order."""
    paths = sorted(path for path in folder.glob(f"*{file_ending}") if not path.name.startswith("."))
    return {path.name[: -len(file_ending)]: path for path in paths}
