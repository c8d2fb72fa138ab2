"""Trained models in nnU-Net's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_din.data.names import short_names
from nnunet_din.nnunet.folders import dataset_name, nnunet_folder
from nnunet_din.nnunet.plans import read_plans


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

    def fold_folder(self, fold: str) -> Path | None:
        """Folder of a fold, of a training on all cases (``all``) as well; None if it was not begun."""
        folder = self.folder / f"fold_{fold}"
        return folder if folder.is_dir() else None


def find_models(dataset: str | int) -> list[Model]:
    """Find every trained model of a data set, in alphabetical order.

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


def trained_folds(folder: Path, checkpoint: str, folds: Sequence[str] | None = None) -> list[str]:
    """Folds of a model that have a checkpoint.

    Parameters
    ----------
    folder
        ``TRAINER__PLANS__CONFIGURATION``.
    checkpoint
        Name of the file, for example ``checkpoint_final.pth``.
    folds
        Numbers of folds, or ``all``, that must have it. None: every fold of the cross-validation that has it, else the
        training on all cases.

    Raises
    ------
    FileNotFoundError
        If the folder is not a model's, or a fold has no such checkpoint; the message names those that have.
    ValueError
        If its plans are none.
    """
    if not (folder / "plans.json").is_file():
        raise FileNotFoundError(
            f"{folder} is no model folder of nnU-Net: it has no plans.json. Give the folder "
            "TRAINER__PLANS__CONFIGURATION in nnUNet_results."
        )
    read_plans(folder / "plans.json")
    trained = [path.parent.name.removeprefix("fold_") for path in sorted(folder.glob(f"fold_*/{checkpoint}"))]
    if folds is None:
        folds = [fold for fold in trained if fold != "all"] or trained
    missing = [fold for fold in folds if fold not in trained]
    if missing or not folds:
        where = f"fold {', '.join(missing)}" if missing else "any fold"
        raise FileNotFoundError(
            f"{folder} has no {checkpoint} of {where}. It has one of: {', '.join(trained) or 'none'}. Give others by "
            "-f and --checkpoint."
        )
    return list(folds)


def choose_models(models: Sequence[Model], names: Sequence[str] | None) -> list[Model]:
    """Choose the models with the given names, in the given order; without names, all of them.

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


def named_models(dataset: str, chosen: Sequence[str] | None, short: bool = True) -> dict[str, Model]:
    """Trained models of a data set by the name to show.

    Parameters
    ----------
    dataset
        Number or name of the data set.
    chosen
        ``TRAINER__PLANS__CONFIGURATION`` or ``NAME=TRAINER__PLANS__CONFIGURATION``; None: all models.
    short
        Whether models without a name get a short one, in place of their folder's.

    Returns
    -------
    dict of str to Model
        In the given order, else in alphabetical order.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such data set or model, or two models have the same name.
    """
    aliases = {}
    for text in chosen or ():
        alias, _, name = text.rpartition("=")
        aliases[name] = alias
    models = choose_models(find_models(dataset), list(aliases))
    if not models:
        raise FileNotFoundError(f"nnU-Net has trained no model on {dataset_name(dataset)} yet.")
    shown = short_names(model.name for model in models) if short else {}
    named = {aliases.get(model.name) or shown.get(model.name, model.name): model for model in models}
    if len(named) < len(models):
        raise ValueError(
            "Two models have the same name: give each its own with --models NAME=TRAINER__PLANS__CONFIGURATION."
        )
    return named


def fold_folders(model: Model, folds: Sequence[str] | None) -> dict[str, Path]:
    """Folders of a model's folds.

    Parameters
    ----------
    model
        The model whose folds are looked for.
    folds
        Numbers of folds, or "all"; None: all numbered folds.

    Raises
    ------
    FileNotFoundError
        If the model has no such fold.
    """
    if folds is None:
        return dict(model.folds)
    folders = {fold: model.folder / f"fold_{fold}" for fold in folds}
    for fold, folder in folders.items():
        if not folder.is_dir():
            raise FileNotFoundError(f"{model.name} has no fold {fold}: there is no folder {folder}.")
    return folders
