"""What the installed nnU-Net writes is what this package reads; its logs and checkpoints are in test_curves.py, the
look-up that the plug-in wraps in test_plugin.py.

If one of these fails with a new release of nnU-Net, the reader that it names has to follow.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_din.nnunet.folders import read_splits, truth_folder, validation_cases
from nnunet_din.nnunet.models import find_models
from nnunet_din.nnunet.plans import has_enhancement
from nnunet_din.runs import demo
from nnunet_din.runs.commandline import EpochProgress, FileProgress
from nnunet_din.runs.crossval.steps import write_splits


@pytest.fixture
def trainer(dataset, plans):
    from nnunet_din.trainers.din_trainer import nnUNetTrainerDIN

    trainer = nnUNetTrainerDIN(plans, "2d", 1, dataset.dataset_json, torch.device("cpu"))
    yield trainer
    shutil.rmtree(trainer.output_folder_base)


def test_splits(trainer, dataset, tmp_path):
    """`validation_cases` reads splits_final.json, and `write_splits` of the cross-validation writes the same one."""
    path = dataset.preprocessed / "splits_final.json"
    path.unlink(missing_ok=True)
    _, validation = trainer.do_split()
    cases = validation_cases(dataset.name)
    assert list(cases) == ["0", "1", "2", "3", "4"]
    assert cases["1"] == list(validation)
    (tmp_path / "gt_segmentations").mkdir()
    (tmp_path / "dataset.json").write_text('{"file_ending": ".nii.gz"}')
    for case in (case for fold in cases.values() for case in fold):
        (tmp_path / "gt_segmentations" / f"{case}.nii.gz").touch()
    write_splits(tmp_path)
    assert read_splits(tmp_path / "splits_final.json") == read_splits(path)


def test_number_of_epochs(trainer):
    """`EpochProgress`: debug.json."""
    trainer.num_epochs = 7
    trainer._save_debug_information()
    progress = EpochProgress(Path(trainer.output_folder) / "debug.json")
    progress.read("2026-11-24 10:00:00.000000: Epoch 2 ")
    assert progress.total == 7


def test_folders_of_trained_models(trainer, dataset, monkeypatch):
    """`find_models` and what the leaderboard and the figures read of a model: names, plans.json, dataset.json."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")  # no processes
    trainer.on_train_start()
    (model,) = (m for m in find_models(dataset.name) if m.folder == Path(trainer.output_folder_base))
    assert model.name == "nnUNetTrainerDIN__nnUNetDINAttoPlans__2d"
    assert model.folds == {"1": Path(trainer.output_folder)}
    content = json.loads((model.folder / "plans.json").read_text())
    assert has_enhancement(content, "2d")
    assert json.loads((model.folder / "dataset.json").read_text())["labels"] == dataset.dataset_json["labels"]


def test_preprocessed_cases(dataset):
    """`FileProgress` of the demo counts one .pkl for each case."""
    # Other tests may have preprocessed configurations of their own beside it.
    progress = FileProgress(99, dataset.preprocessed / "nnUNetDINAttoPlans_2d", "*.pkl")
    progress.start = 0
    assert progress.count() == dataset.dataset_json["numTraining"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "labels",
    [{"background": 0, "RV": 1, "MYO": 2, "LV": 3}, {"background": 0, "whole": [1, 2, 3], "LV": 3}],
)
def test_summary(dataset, tmp_path, labels):
    """`summary.json`: names of labels and of regions, Dice, files of cases."""
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    truth = truth_folder(dataset.name)
    structures = [tuple(value) if isinstance(value, list) else value for value in labels.values()][1:]
    compute_metrics_on_folder(
        str(truth), str(truth), str(tmp_path / "summary.json"), SimpleITKIO(), ".nii.gz", structures, num_processes=1
    )
    dice, dice_of_case = demo._read_summary(tmp_path / "summary.json", labels)
    assert dice == {name: 1.0 for name in labels if name != "background"}
    assert sorted(dice_of_case) == sorted(path.name for path in truth.glob("*.nii.gz"))
    assert np.allclose(list(dice_of_case.values()), 1.0)
