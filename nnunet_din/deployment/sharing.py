"""A trained model to give to others: weights as safetensors, everything else as JSON, and a manifest of hashes.

The files lie where nnU-Net has them in its model folder: ``plans.json``, ``dataset.json``, the scores, and
``fold_0/weights.safetensors`` in place of a checkpoint. Nothing in them is unpickled.
:func:`nnunet_din.nnunet.predictor.read_model_folder` reads them.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from nnunet_din import __version__
from nnunet_din.data.files import folder_written_whole, sha256_of, write_text
from nnunet_din.data.weight_files import read_weights, write_checkpoint, write_tensors
from nnunet_din.nnunet.predictor import read_model_folder
from nnunet_din.nnunet.shared import FORMAT, MANIFEST, WEIGHTS, enhancement_weights, files_in

#: Scores of nnU-Net's validations in a model folder.
_SCORES = ("fold_*/validation/summary.json", "crossval_results_folds_*/summary.json")


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
    model = read_model_folder(folder, folds, checkpoint)
    plans = copy.deepcopy(model.plans)
    with folder_written_whole(out) as partial:
        for fold, weights in model.weights.items():
            write_tensors(weights, partial / f"fold_{fold}" / WEIGHTS)
        for number, entry in enumerate(enhancement_weights(plans, model.configuration)):
            own = partial / f"zero_dce_{number}.safetensors"
            if sha256_of(Path(entry["weights"])) != entry["sha256"]:
                raise ValueError(f"The enhancement's weights {entry['weights']} are not the file of the plans.")
            write_tensors(read_weights(Path(entry["weights"])), own)
            entry.update(weights=own.name, sha256=sha256_of(own))
        _write_json(partial / "plans.json", plans)
        _write_json(partial / "dataset.json", model.dataset_json)
        for path in _scores(folder):
            content = json.loads((folder / path).read_text(encoding="utf-8"), object_hook=_without_folders)
            _write_json(partial / path, content)
        files = files_in(partial)
        manifest = {
            "format": FORMAT,
            "made_by": f"nnunet_din {__version__}",
            "trainer": model.trainer,
            "configuration": model.configuration,
            "mirroring_axes": model.mirroring_axes,
            "folds": list(model.weights),
            "files": {name: {"size": file.stat().st_size, "sha256": sha256_of(file)} for name, file in files.items()},
        }
        # Last: without it nobody takes the folder for a model.
        _write_json(partial / MANIFEST, manifest)
    return [out / name for name in (*files, MANIFEST)]


def import_model(folder: Path, results: Path) -> Path:
    """Make a model folder of nnU-Net, with checkpoints, from a shared model.

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
        As :func:`nnunet_din.nnunet.predictor.read_model_folder`, or if the model folder is there already, or the names
        in the plans lead out of ``results``.
    """
    model = read_model_folder(folder)
    plans, dataset_json = copy.deepcopy(model.plans), model.dataset_json
    target = results / plans["dataset_name"] / f"{model.trainer}__{plans['plans_name']}__{model.configuration}"
    if target.resolve().parent.parent != results.resolve():
        raise ValueError(f"{folder} names itself {target.relative_to(results)}, which leads out of {results}: refused.")
    with folder_written_whole(target) as partial:
        for entry in enhancement_weights(plans, model.configuration):
            copied = shutil.copy(entry["weights"], partial)
            entry["weights"] = str(target.resolve() / Path(copied).name)
        _write_json(partial / "plans.json", plans)
        _write_json(partial / "dataset.json", dataset_json)
        for path in _scores(folder):
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / path, partial / path)
        for fold, weights in model.weights.items():
            checkpoint = {
                "network_weights": weights,
                "trainer_name": model.trainer,
                "init_args": {
                    "plans": plans,
                    "configuration": model.configuration,
                    "fold": fold if fold == "all" else int(fold),
                    "dataset_json": dataset_json,
                },
                "inference_allowed_mirroring_axes": model.mirroring_axes,
            }
            write_checkpoint(checkpoint, partial / f"fold_{fold}" / "checkpoint_final.pth")
    return target


def _scores(folder: Path) -> list[Path]:
    return [path.relative_to(folder) for pattern in _SCORES for path in sorted(folder.glob(pattern))]


def _without_folders(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of nnU-Net's scores without the folders in which this machine has the images."""
    return {
        key: PureWindowsPath(value).name
        if key in ("prediction_file", "reference_file")
        else value  # takes both slashes
        for key, value in entry.items()
    }


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")
