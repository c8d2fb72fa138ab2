"""`nnunet-din predict`: which files are cases, what becomes of those that cannot be predicted, and the pictures."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunet_dataset import save_image
from nnunet_din.commands.main import main
from nnunet_din.evaluation.comparison import rows_of_prediction
from nnunet_din.nnunet.prediction import find_cases

ONE = {"channel_names": {"0": "MRI"}, "file_ending": ".nii.gz"}
TWO = {"channel_names": {"0": "T1", "1": "T2"}, "file_ending": ".nii.gz"}


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text("")
    return folder


def test_cases_by_folders_and_files(tmp_path):
    folder = touch(tmp_path / "images", "b_0000.nii.gz", "a_0000.nii.gz", "a_0001.nii.gz", "notes.txt")
    single = touch(tmp_path / "single", "scan.1.nii.gz") / "scan.1.nii.gz"
    assert list(find_cases([folder], ONE)) == ["a", "b"]
    assert find_cases([single], ONE) == {"scan.1": [single]}
    assert find_cases([folder / "a_0000.nii.gz"], TWO) == {"a": [folder / "a_0000.nii.gz", folder / "a_0001.nii.gz"]}


def test_a_picture_in_three_colours_is_one_file(tmp_path):
    path = tmp_path / "skin_0000.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    rgb = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "file_ending": ".png"}
    assert find_cases([path], rgb) == {"skin": [path]}


@pytest.mark.parametrize(
    ("names", "dataset_json", "message"),
    [
        (["a_0000.nii.gz", "nowhere.nii.gz"], ONE, "nowhere.nii.gz does not exist"),
        (["a_0000.nii.gz"], TWO, "a_0001.nii.gz does not exist: the data set has 2 channels"),
        (["plain.nii.gz"], TWO, "takes 2 channels in files called CASE_0000.nii.gz"),
        (["a_0000.nii.gz", "a.nii.gz"], ONE, "both of the case a"),
        (["empty"], ONE, "empty holds no image called CASE_0000.nii.gz"),
        (["a_0000.nrrd"], ONE, "files called CASE_0000.nii.gz"),
    ],
)
def test_what_is_no_case_is_named(names, dataset_json, message, tmp_path):
    folder = touch(tmp_path / "images", "a_0000.nii.gz", "a.nii.gz", "plain.nii.gz", "a_0000.nrrd")
    (folder / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_cases([folder / name for name in names], dataset_json)


@pytest.mark.slow
def test_good_cases_are_predicted_and_bad_ones_named(model, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for seed, name in enumerate(("first", "last")):
        save_image(images / f"{name}_0000.nii.gz", seed=seed)
    (images / "broken_0000.nii.gz").write_bytes(b"no image")
    folder, out = model(), tmp_path / "out"
    assert main(["predict", str(folder), str(images), "-o", str(out), "-device", "cpu", "--png"]) == 1
    captured = capsys.readouterr()
    assert "broken was not predicted" in captured.err and "broken_0000.nii.gz" in captured.err
    assert captured.err.splitlines()[-1] == "nnunet-din predict: 1 of 3 cases were not predicted."
    assert "I am process" not in captured.out
    assert {"first.nii.gz", "first_overlay.png", "last.nii.gz", "last_overlay.png"} <= {p.name for p in out.iterdir()}
    assert not (out / "broken.nii.gz").exists()
    assert min(Image.open(out / "first_overlay.png").size) > 500

    # Again without mirroring, one file, another name: another average of the same network.
    single = shutil.copy(images / "first_0000.nii.gz", tmp_path / "scan.nii.gz")
    arguments = [str(folder), str(single), "-o", str(out), "-device", "cpu", "--no-mirroring"]
    assert main(["predict", *arguments]) == 0
    with_flips, without = (sitk.GetArrayFromImage(sitk.ReadImage(str(out / f"{n}.nii.gz"))) for n in ("first", "scan"))
    assert with_flips.shape == without.shape and 0.5 < (with_flips == without).mean() < 1


def test_pictures_are_spread_over_what_was_predicted(plans, dataset, tmp_path):
    image = save_image(tmp_path / "case_0000.nii.gz")  # 5 slices
    label = np.zeros((5, 50, 61), np.uint8)
    label[1:4, 20:30, 20:30] = 2
    label[2, 5:10, 5:10] = 1
    sitk.WriteImage(sitk.GetImageFromArray(label), str(tmp_path / "case.nii.gz"))
    rows = rows_of_prediction([image], tmp_path / "case.nii.gz", plans, "2d", dataset.dataset_json)
    assert [row["name"] for row in rows] == ["slice 1", "slice 2", "slice 3"]
    shapes = {row[key].shape for row in rows for key in ("image", "enhanced")}
    assert len(shapes) == 1, "the same part of every slice"
    assert rows[1]["predictions"]["Prediction"].sum() == label[2].sum(), "all structures are in it"
    assert all(-1 <= row["enhanced"].min() < row["enhanced"].max() <= 1 for row in rows)

    stock = json.loads(json.dumps(plans))
    del stock["configurations"]["2d"]["enhancement"]
    rows = rows_of_prediction([image], tmp_path / "case.nii.gz", stock, "2d", dataset.dataset_json, slices=1)
    assert [row["name"] for row in rows] == ["slice 2"] and "enhanced" not in rows[0]

    sitk.WriteImage(sitk.GetImageFromArray(np.zeros_like(label)), str(tmp_path / "case.nii.gz"))
    rows = rows_of_prediction([image], tmp_path / "case.nii.gz", plans, "2d", dataset.dataset_json)
    assert [row["name"] for row in rows] == ["slice 2"], "the middle, where nothing was found"
    assert rows[0]["image"].shape == (50, 61)
