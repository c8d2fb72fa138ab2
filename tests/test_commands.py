"""nnU-Net's own commands, as a user types them, with nothing set but nnU-Net's three folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nnunet_din.data import write_dataset

pytestmark = pytest.mark.slow
DATASET = "Dataset996_TestCommands"
MODEL = ("-tr", "nnUNetTrainerDIN_smoke", "-p", "nnUNetDINAttoPlans")


@pytest.fixture(scope="module")
def nnunet(tmp_path_factory, forked_workers):
    """Runs a command in an environment of its own; the data set is planned and two folds are trained.

    nnU-Net's workers are forked, which is quicker, unless a command is called with ``spawns``.
    """
    root = tmp_path_factory.mktemp("commands")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet_")}
    # Few workers: each of them loads torch anew.
    environment.update(nnUNet_def_n_proc="1", nnUNet_n_proc_DA="1")
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / name).mkdir()
        environment[name] = str(root / name)
    write_dataset(root / "nnUNet_raw" / DATASET, train=5, test=2, size=32, slices=3)

    def run(command, *arguments, fails=False, spawns=False):
        path = Path(sys.executable).parent / command
        folders = ["" if spawns else str(forked_workers), os.environ.get("PYTHONPATH", "")]
        result = subprocess.run(
            [str(path), *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, folders))},
            cwd=root,
        )
        output = result.stdout + result.stderr
        assert (result.returncode != 0) == fails, output[-4000:]
        return output

    run.root = root
    run.model = root / "nnUNet_results" / DATASET / "nnUNetTrainerDIN_smoke__nnUNetDINAttoPlans__2d"
    plan = "-d 996 -pl nnUNetPlannerDINAtto -c 2d --verify_dataset_integrity -np 1 -npfp 1"
    run("nnUNetv2_plan_and_preprocess", *plan.split(), spawns=True)
    for fold in (0, 1):
        run("nnUNetv2_train", 996, "2d", fold, *MODEL, "-device", "cpu", "--npz", spawns=fold == 0)
    return run


def test_training_writes_what_nnunet_writes(nnunet):
    for fold in (0, 1):
        folder = nnunet.model / f"fold_{fold}"
        assert (folder / "checkpoint_final.pth").exists() and (folder / "validation" / "summary.json").exists()


def test_validation_can_be_repeated_and_training_continued(nnunet):
    summary = nnunet.model / "fold_0" / "validation" / "summary.json"
    before = json.loads(summary.read_text())
    summary.unlink()
    nnunet("nnUNetv2_train", 996, "2d", 0, *MODEL, "-device", "cpu", "--val", "--npz")
    assert json.loads(summary.read_text())["foreground_mean"] == before["foreground_mean"]
    # an interruption after the first epoch: only the intermediate checkpoint is there
    folder = nnunet.model / "fold_0"
    final = folder / "checkpoint_final.pth"
    import torch

    checkpoint = torch.load(final, weights_only=False)
    checkpoint["current_epoch"] = 1
    torch.save(checkpoint, folder / "checkpoint_latest.pth")
    final.unlink()
    output = nnunet("nnUNetv2_train", 996, "2d", 0, *MODEL, "-device", "cpu", "--c", "--npz")
    assert "Epoch 1" in output and "Epoch 0" not in output and final.exists()


def test_find_best_configuration_and_ensemble_of_folds(nnunet):
    import SimpleITK as sitk

    nnunet("nnUNetv2_find_best_configuration", 996, "-c", "2d", *MODEL, "-f", 0, 1, "-np", 1)
    images = nnunet.root / "nnUNet_raw" / DATASET / "imagesTs"
    out = nnunet.root / "predicted"
    arguments = ("-d", 996, "-i", images, "-o", out, "-c", "2d", *MODEL, "-f", 0, 1)
    nnunet("nnUNetv2_predict", *arguments, "-device", "cpu", "-npp", 1, "-nps", 1, spawns=True)
    for image in images.glob("*_0000.nii.gz"):
        prediction = sitk.ReadImage(str(out / image.name.replace("_0000", "")))
        original = sitk.ReadImage(str(image))
        assert prediction.GetSize() == original.GetSize() and prediction.GetSpacing() == original.GetSpacing()
        assert set(np.unique(sitk.GetArrayFromImage(prediction))) <= {0, 1, 2, 3}


def test_a_configuration_of_the_papers_tables_competes_with_the_first(nnunet):
    """`nnunet-din configure`, then nnU-Net's commands: trained, validated, compared and ensembled with `2d`."""
    nnunet("nnunet-din", "configure", "-d", 996, "-p", MODEL[3], "--name", "2d_concat", "--set", "fusion=concat")
    for fold in (0, 1):
        nnunet("nnUNetv2_train", 996, "2d_concat", fold, *MODEL, "-device", "cpu", "--npz")
    nnunet("nnUNetv2_find_best_configuration", 996, "-c", "2d", "2d_concat", *MODEL, "-f", 0, 1, "-np", 1)
    information = json.loads((nnunet.model.parent / "inference_information.json").read_text())
    scores = information["all_results"]
    assert len(scores) == 3 and sum(name.startswith("ensemble") for name in scores), scores
    assert any(name.endswith("__2d_concat") for name in scores)


def test_fine_tuning_on_a_data_set_of_other_classes(nnunet):
    """The plans move to the other data set, and the weights with them, all by nnU-Net's commands."""
    import SimpleITK as sitk

    name = "Dataset995_TestThreeClasses"
    raw = nnunet.root / "nnUNet_raw" / name
    write_dataset(raw, train=5, test=1, size=32, slices=3, seed=1)
    description = json.loads((raw / "dataset.json").read_text())
    description["labels"] = {"background": 0, "myocardium": 1, "ventricle": 2}
    (raw / "dataset.json").write_text(json.dumps(description))
    for path in (raw / "labelsTr").glob("*.nii.gz"):
        labels = sitk.ReadImage(str(path))
        changed = sitk.GetImageFromArray(np.array([0, 2, 1, 2], np.uint8)[sitk.GetArrayFromImage(labels)])
        changed.CopyInformation(labels)
        sitk.WriteImage(changed, str(path))
    nnunet("nnUNetv2_extract_fingerprint", "-d", 995, "-np", 1)
    nnunet("nnUNetv2_move_plans_between_datasets", "-s", 996, "-t", 995, "-sp", MODEL[3], "-tp", "nnUNetMovedPlans")
    nnunet("nnUNetv2_preprocess", "-d", 995, "-plans_name", "nnUNetMovedPlans", "-c", "2d", "-np", 1)
    weights = nnunet.model / "fold_0" / "checkpoint_final.pth"
    arguments = ("-tr", MODEL[1], "-p", "nnUNetMovedPlans", "-device", "cpu", "-pretrained_weights", weights)
    nnunet("nnUNetv2_train", 995, "2d", 0, *arguments)
    folder = nnunet.model.parents[1] / name / "nnUNetTrainerDIN_smoke__nnUNetMovedPlans__2d" / "fold_0"
    (log,) = folder.glob("training_log_*.txt")
    assert f"Pretrained weights from {weights}" in log.read_text()
    assert set(json.loads((folder / "validation" / "summary.json").read_text())["mean"]) == {"1", "2"}


def test_errors_of_the_commands_say_what_to_do(nnunet):
    nnunet("nnUNetv2_plan_experiment", "-d", 996)
    arguments = ("996", "2d", "0", "-tr", "nnUNetTrainerDIN_smoke", "-p", "nnUNetPlans", "-device", "cpu")
    output = nnunet("nnUNetv2_train", *arguments, fails=True)
    assert f"nnUNetv2_plan_and_preprocess -d {DATASET} -pl nnUNetPlannerDINFast -c 2d" in output.splitlines()[-1]
