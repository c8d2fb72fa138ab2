"""A trained model to give to others: weights as safetensors, everything else as JSON, and a manifest of hashes.

The files lie where nnU-Net has them in its model folder: ``plans.json``, ``dataset.json``, the scores, and
``fold_0/weights.safetensors`` in place of a checkpoint. Nothing in them is unpickled, and nothing is used before all of
them were compared with the manifest.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from torch import Tensor

from nnunet_din import __version__
from nnunet_din.data.files import folder_written_whole as _written_whole
from nnunet_din.data.files import read_json, sha256_of, write_text
from nnunet_din.data.weight_files import check_finite, read_tensors, read_weights, write_checkpoint, write_tensors
from nnunet_din.nnunet.known_classes import check_plans
from nnunet_din.nnunet.models import trained_folds
from nnunet_din.nnunet.plans import enhancements_of
from nnunet_din.nnunet.predictor import TrainedModel, read_model_folder

#: Changes when a program that reads older folders would go wrong.
FORMAT = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
#: All that a shared model may consist of, beside the manifest.
_FILES = re.compile(
    rf"plans\.json|dataset\.json|zero_dce_[0-9]+\.safetensors|fold_(?:[0-9]+|all)/{re.escape(WEIGHTS)}"
    r"|fold_(?:[0-9]+|all)/validation/summary\.json|crossval_results_folds_[0-9_]+/summary\.json"
)
#: Name of one file or folder, on any system.
_NAME = re.compile(r"[^\\/:.\x00-\x1f][^\\/:\x00-\x1f]*")


@dataclass(frozen=True)
class SharedModel:
    """A shared model that was compared with its manifest.

    Attributes
    ----------
    folder : pathlib.Path
        Where it lies.
    trainer, configuration : str
        Name of the trainer's class, and configuration of the plans.
    mirroring_axes : tuple of int or None
        Axes along which the image may be flipped; None: none.
    folds : tuple of str
        Numbers of folds, or ``all``.
    files : tuple of str
        Names of all files but the manifest, relative to the folder.
    plans, dataset_json : dict
        Contents of these files.
    """

    folder: Path
    trainer: str
    configuration: str
    mirroring_axes: tuple[int, ...] | None
    folds: tuple[str, ...]
    files: tuple[str, ...]
    plans: dict
    dataset_json: dict


def is_shared(folder: Path) -> bool:
    """Whether a folder has a manifest, as no model folder of nnU-Net has."""
    return (folder / MANIFEST).exists()


def share_model(folder: Path, out: Path, folds: Sequence[str] | None = None, checkpoint: str = "final") -> list[Path]:
    """Write a trained model as files to share.

    Parameters
    ----------
    folder
        Model folder of nnU-Net, ``TRAINER__PLANS__CONFIGURATION``, of DIN or not.
    out
        Folder for the files. It appears when all of them are written.
    folds, checkpoint
        See :func:`nnunet_din.nnunet.predictor.read_model_folder`.

    Returns
    -------
    list of pathlib.Path
        The files, the manifest last.

    Raises
    ------
    FileNotFoundError
        If the folder is not a model's, or a fold has no such checkpoint.
    ValueError
        If ``out`` is there and not empty, a checkpoint is not nnU-Net's or holds more than weights, or those who get
        the model would be refused it, because of a class that is not nnU-Net's or ours.
    """
    folds = trained_folds(folder, f"checkpoint_{checkpoint}.pth", folds)
    with _written_whole(out) as partial:
        models = {}
        for fold in folds:
            model = read_model_folder(folder, [fold], checkpoint)
            models[(model.trainer, model.configuration, model.mirroring_axes)] = model
            write_tensors(model.weights[fold], partial / f"fold_{fold}" / WEIGHTS)
        if len(models) > 1:
            raise ValueError(f"The folds of {folder} are of different trainings ({'; '.join(map(str, models))}).")
        _check_names(model.trainer, model.configuration, model.plans, model.dataset_json)
        _write_json(partial / "plans.json", _with_own_weights(model.plans, model.configuration, partial))
        _write_json(partial / "dataset.json", model.dataset_json)
        _copy_scores(folder, partial, folds)
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "made_by": f"nnunet_din {__version__}",
            "trainer": model.trainer,
            "configuration": model.configuration,
            "mirroring_axes": None if model.mirroring_axes is None else list(model.mirroring_axes),
            "folds": list(folds),
            "files": {
                name: {"size": (partial / name).stat().st_size, "sha256": sha256_of(partial / name)}
                for name in sorted(_files_in(partial))
            },
        }
        # Last: without it nobody takes the folder for a model.
        _write_json(partial / MANIFEST, manifest)
        files = [*manifest["files"], MANIFEST]
    return [out / name for name in files]


def open_shared(folder: Path) -> SharedModel:
    """Compare a shared model with its manifest, and check all that it names.

    Raises
    ------
    FileNotFoundError
        If there is no manifest.
    ValueError
        If a file is missing, too many, a link, or not the manifest's; if a name leads out of the folder; if the plans
        name a class that is not nnU-Net's or ours; or if a newer version has written it.
    """
    if not is_shared(folder):
        raise FileNotFoundError(
            f"{folder} holds no {MANIFEST}: it was not written by `nnunet-din export --format safetensors`."
        )
    present = _files_in(folder)  # before anything is opened, links included
    manifest = _read_manifest(folder / MANIFEST)
    files = manifest["files"]
    for name in files:
        if not _FILES.fullmatch(name):
            inside = all(_NAME.fullmatch(part) for part in name.split("/"))
            what = "is no file of a shared model" if inside else "leads out of the folder"
            raise ValueError(f"{folder / MANIFEST} names '{name}', which {what}: refused.")
    for word, names in (("lacks", files.keys() - present), ("holds in addition", present - {*files, MANIFEST})):
        if names:
            raise ValueError(f"{folder} {word} {', '.join(sorted(names))}, against its manifest: refused.")
    folds = tuple(manifest["folds"])
    needed = {"plans.json", "dataset.json", *(f"fold_{fold}/{WEIGHTS}" for fold in folds)}
    if not folds or needed - files.keys() or sum(name.endswith(WEIGHTS) for name in files) > len(folds):
        raise ValueError(f"{folder / MANIFEST} does not name plans, data set and weights of its folds alone: refused.")
    for name, expected in files.items():
        path = folder / name
        if path.stat().st_size != expected["size"] or sha256_of(path) != expected["sha256"]:
            raise ValueError(
                f"{path} is not the file of the manifest: it is damaged, or was changed. Get it again from where it "
                "comes from."
            )
    plans, dataset_json = (read_json(folder / name) for name in ("plans.json", "dataset.json"))
    trainer, configuration, axes = (manifest[key] for key in ("trainer", "configuration", "mirroring_axes"))
    try:
        _check_names(trainer, configuration, plans, dataset_json)
        for entry in _entries_with_weights(plans, configuration):
            if files.get(str(entry["weights"]), {}).get("sha256") != entry.get("sha256"):
                raise ValueError(f"The enhancement takes weights from {entry['weights']}, which is no file of it.")
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    axes = None if axes is None else tuple(axes)
    return SharedModel(folder, trainer, configuration, axes, folds, tuple(files), plans, dataset_json)


def read_shared(folder: Path, folds: Sequence[str] | None = None) -> TrainedModel:
    """Read a shared model, after :func:`open_shared`, for :func:`nnunet_din.nnunet.predictor.make_predictor`.

    Parameters
    ----------
    folder
        What :func:`share_model` has written.
    folds
        Folds to take; None: all.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`open_shared`, if it has no such fold, or if weights are not finite.
    """
    shared = open_shared(folder)
    missing = [fold for fold in folds or () if fold not in shared.folds]
    if missing:
        raise ValueError(f"{folder} has no fold {', '.join(missing)}. It has: {', '.join(shared.folds)}.")
    weights = {fold: _read_weights(folder, fold) for fold in folds or shared.folds}
    plans = _with_weights_in(shared.plans, shared.configuration, folder.resolve())
    return TrainedModel(
        plans, shared.dataset_json, shared.configuration, shared.trainer, shared.mirroring_axes, weights
    )


def import_model(folder: Path, results: Path) -> Path:
    """Make a model folder of nnU-Net from a shared model, after :func:`open_shared`.

    Its checkpoints hold what prediction and fine-tuning need, and no training goes on from them.

    Parameters
    ----------
    folder
        What :func:`share_model` has written.
    results
        Folder that holds data sets as ``nnUNet_results`` does; made if it is not there.

    Returns
    -------
    pathlib.Path
        ``DATASET/TRAINER__PLANS__CONFIGURATION`` in ``results``. It appears when all of it is written.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`open_shared`, if weights are not finite, or if the model folder is there already.
    """
    shared = open_shared(folder)
    name = f"{shared.trainer}__{shared.plans['plans_name']}__{shared.configuration}"
    target = results / shared.plans["dataset_name"] / name
    with _written_whole(target) as partial:
        for file in shared.files:
            if not file.endswith(f"/{WEIGHTS}"):
                (partial / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / file, partial / file)
        plans = _with_weights_in(shared.plans, shared.configuration, target.resolve())
        if plans != shared.plans:
            _write_json(partial / "plans.json", plans)
        for fold in shared.folds:
            checkpoint = {
                "network_weights": _read_weights(folder, fold),
                "trainer_name": shared.trainer,
                "init_args": {
                    "plans": plans,
                    "configuration": shared.configuration,
                    "fold": fold if fold == "all" else int(fold),
                    "dataset_json": shared.dataset_json,
                },
                "inference_allowed_mirroring_axes": shared.mirroring_axes,
            }
            write_checkpoint(checkpoint, partial / f"fold_{fold}" / "checkpoint_final.pth")
    return target


# ---- the folder ----


def _files_in(folder: Path) -> set[str]:
    """Names of all files, relative to the folder; a link or anything else that is no file is an error."""
    names = set()
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise ValueError(
                    f"{path} is no file but a link or a device, which may lead out of the folder: refused."
                )
        names |= {Path(parent, name).relative_to(folder).as_posix() for name in files}
    return names


def _read_weights(folder: Path, fold: str) -> dict[str, Tensor]:
    """Weights of a fold of a shared model, all of them finite."""
    path = folder / f"fold_{fold}" / WEIGHTS
    weights = read_tensors(path)
    check_finite(weights, path)
    return weights


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def _read_manifest(path: Path) -> dict:
    """The manifest, with keys and types as :func:`share_model` writes them."""
    manifest = read_json(path)
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if type(version) is not int:
        raise ValueError(f"{path} is no manifest of a shared model: it has no `format`.")
    if version > FORMAT:
        raise ValueError(
            f"{path} has format {version}, and this version of nnunet_din reads {FORMAT}: install a newer one."
        )
    axes = manifest.get("mirroring_axes", "")
    correct = {
        "trainer": isinstance(manifest.get("trainer"), str),
        "configuration": isinstance(manifest.get("configuration"), str),
        "mirroring_axes": axes is None or (isinstance(axes, list) and all(axis in (0, 1, 2) for axis in axes)),
        "folds": _is_list_of_names(manifest.get("folds")),
        "files": isinstance(manifest.get("files"), dict)
        and all(isinstance(entry, dict) and {"size", "sha256"} <= entry.keys() for entry in manifest["files"].values()),
    }
    if wrong := [key for key, fine in correct.items() if not fine]:
        raise ValueError(f"{path} is no manifest of a shared model: `{wrong[0]}` is missing, or not what it should be.")
    return manifest


def _is_list_of_names(folds: Any) -> bool:
    return (
        isinstance(folds, list)
        and all(isinstance(fold, str) and re.fullmatch("[0-9]+|all", fold) for fold in folds)
        and len(set(folds)) == len(folds)
    )


def _check_names(trainer: str, configuration: str, plans: Any, dataset_json: Any) -> None:
    """Check all names that lead to a class or into a path."""
    if not isinstance(plans, dict) or not isinstance(dataset_json, dict):
        raise ValueError("plans.json or dataset.json is no JSON object.")
    if not (isinstance(trainer, str) and trainer.isidentifier()):
        raise ValueError(f"The trainer {trainer!r} is no name of a class.")
    ending = dataset_json.get("file_ending")
    names = {
        "data set": plans.get("dataset_name"),
        "plans": plans.get("plans_name"),
        "configuration": configuration,
        "ending of images": ending.removeprefix(".") if isinstance(ending, str) else ending,
    }
    for what, name in names.items():
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise ValueError(f"The {what} is called {name!r}, which is no name of a file or folder.")
    check_plans(plans, configuration, dataset_json)


# ---- scores ----


def _copy_scores(folder: Path, out: Path, folds: Sequence[str]) -> None:
    """What nnU-Net's validations have found, without the folders in which this machine has the images."""
    summaries = [folder / f"fold_{fold}" / "validation" / "summary.json" for fold in folds]
    summaries += sorted(folder.glob("crossval_results_folds_*/summary.json"))
    for path in summaries:
        name = path.relative_to(folder)
        if path.is_file() and _FILES.fullmatch(name.as_posix()):
            _write_json(out / name, _without_folders(read_json(path)))


def _without_folders(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {
            key: PureWindowsPath(value).name  # takes both slashes
            if key in ("prediction_file", "reference_file") and isinstance(value, str)
            else _without_folders(value)
            for key, value in content.items()
        }
    return [_without_folders(value) for value in content] if isinstance(content, list) else content


# ---- weights of an enhancement that is a network ----


def _entries_with_weights(plans: dict, configuration: str) -> list[dict]:
    """Arguments of the enhancements of a configuration that are networks of their own."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    resolved = PlansManager(plans).get_configuration(configuration).configuration
    return [entry for entry in enhancements_of(resolved) if "weights" in entry]


def _replaced(plans: dict, new: Mapping[str, Mapping[str, str]]) -> dict:
    """Plans whose enhancements have other weights; ``new``: SHA-256 of the old ones -> what is changed."""
    plans = copy.deepcopy(plans)
    for content in plans["configurations"].values():
        entry = content.get("enhancement") or []
        for each in [entry] if isinstance(entry, dict) else entry:
            each.update(new.get(str(each.get("sha256")), {}))
    return plans


def _with_own_weights(plans: dict, configuration: str, out: Path) -> dict:
    """Plans that name the weights of their enhancements in the folder, to which these are written."""
    new: dict[str, dict[str, str]] = {}
    for entry in _entries_with_weights(plans, configuration):
        source = Path(entry["weights"])
        if not source.is_file() or sha256_of(source) != entry["sha256"]:
            raise ValueError(f"The enhancement's weights {source} are not there, or not the file of the plans.")
        name = f"zero_dce_{len(new)}.safetensors"
        if entry["sha256"] not in new:
            write_tensors(read_weights(source), out / name)
            new[entry["sha256"]] = {"weights": name, "sha256": sha256_of(out / name)}
    return _replaced(plans, new)


def _with_weights_in(plans: dict, configuration: str, folder: Path) -> dict:
    """Plans that name the weights of their enhancements by their place."""
    entries = _entries_with_weights(plans, configuration)
    return _replaced(plans, {entry["sha256"]: {"weights": str(folder / entry["weights"])} for entry in entries})
