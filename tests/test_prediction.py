"""`nnunet-din predict`: which files are cases, what becomes of those that cannot be predicted, and the pictures."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from nnunet_dataset import save_image
from nnunet_din.commands import predict
from nnunet_din.commands.main import main
from nnunet_din.data.images import Image as Volume
from nnunet_din.evaluation.comparison import rows_of_prediction
from nnunet_din.nnunet.prediction import find_cases
from nnunet_din.nnunet.predictor import read_model_folder

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
    assert captured.err.splitlines()[-1] == "nnunet-din predict: 1 of 3 cases failed."
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


def test_pictures_are_spread_over_what_was_predicted():
    volume = np.random.default_rng(0).normal(size=(1, 5, 50, 61))
    label = np.zeros((5, 50, 61), np.uint8)
    label[1:4, 20:30, 20:30] = 2
    label[2, 5:10, 5:10] = 1
    image = Volume(volume, (6.0, 1.0, 1.0), color=False)
    rows = rows_of_prediction(image, label, -volume)
    assert [row["name"] for row in rows] == ["slice 1", "slice 2", "slice 3"]
    shapes = {row[key].shape for row in rows for key in ("image", "enhanced")}
    assert len(shapes) == 1, "the same part of every slice"
    assert rows[1]["prediction"].sum() == label[2].sum(), "all structures are in it"
    assert all((row["enhanced"] == -row["image"]).all() for row in rows)

    rows = rows_of_prediction(image, label, slices=1)
    assert [row["name"] for row in rows] == ["slice 2"] and rows[0]["enhanced"] is None

    rows = rows_of_prediction(image, np.zeros_like(label))
    assert [row["name"] for row in rows] == ["slice 2"], "the middle, where nothing was found"
    assert rows[0]["image"].shape == (50, 61)


# ---- what is refused, and what is not lost ----


@pytest.fixture
def quick_network(monkeypatch):
    """nnU-Net's predictor with a network that calls bright voxels 1, at once."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    def logits(self, data):
        logits = torch.zeros(4, *data.shape[1:])
        logits[1] = data[0]
        return logits

    monkeypatch.setattr(nnUNetPredictor, "predict_logits_from_preprocessed_data", logits)
    return logits


def test_a_label_map_is_never_written_onto_an_image(model, tmp_path, monkeypatch, capsys):
    """Fails if `predict MODEL scan.nii.gz`, which writes scan.nii.gz into this folder by default, replaces the scan."""
    (tmp_path / "here").mkdir()
    image = save_image(tmp_path / "here" / "scan.nii.gz")
    before = image.read_bytes()
    monkeypatch.chdir(image.parent)
    assert main(["predict", str(model()), image.name]) == 1
    assert "scan.nii.gz would be overwritten, and it is one of the inputs" in capsys.readouterr().err
    assert image.read_bytes() == before and os.listdir() == [image.name]


def test_the_spacing_of_a_tiff_volume_is_not_replaced(model, tmp_path, capsys):
    """nnU-Net's reader finds it beside the image, and its writer puts one beside the label map, by the same name."""
    folder = model()
    for name, change in (
        ("plans.json", {"image_reader_writer": "Tiff3DIO"}),
        ("dataset.json", {"file_ending": ".tif"}),
    ):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | change))
    images = touch(tmp_path / "images", "c_0000.tif", "c.json")
    assert main(["predict", str(folder), str(images), "-o", str(images)]) == 1
    assert "c.json would be overwritten" in capsys.readouterr().err
    assert (images / "c.json").read_text() == ""


def test_an_incomplete_case_in_a_folder_costs_the_others_nothing(tmp_path):
    names = ("a_0000.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz", os.fsdecode(b"\xff_0000.nii.gz"))
    cases = find_cases([touch(tmp_path / "images", *names)], TWO)
    assert [path.name for path in cases.pop("b")] == list(names[1:3])
    assert sorted(type(fault).__name__ for fault in cases.values()) == ["FileNotFoundError", "ValueError"]


def test_the_files_of_a_model_or_a_data_set_are_not_replaced(model, dataset, capsys):
    """Fails if dataset.json, which is written beside label maps, replaces that of the folder given by -o."""
    folder, image = model(), next((dataset.raw / "imagesTs").iterdir())
    other = shutil.copytree(folder, folder.parent / "nnUNetTrainer__nnUNetOtherPlans__2d")
    for out, what in (
        (folder, "plans.json would be overwritten"),
        (other, "is the folder of a model"),
        (dataset.raw, "is the folder of a data set"),
    ):
        before = (out / "dataset.json").read_bytes()
        assert main(["predict", str(folder), str(image), "-o", str(out)]) == 1
        assert what in capsys.readouterr().err
        assert (out / "dataset.json").read_bytes() == before


def test_a_picture_that_cannot_be_drawn_costs_no_label_map(model, tmp_path, quick_network, monkeypatch, capsys):
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        save_image(tmp_path / "images" / f"{name}_0000.nii.gz")
    monkeypatch.setattr(predict, "_draw", lambda *_: 1 / 0)
    arguments = [str(model()), str(tmp_path / "images"), "-o", str(tmp_path / "out"), "-device", "cpu", "--png"]
    assert main(["predict", *arguments]) == 1
    assert {"a.nii.gz", "b.nii.gz"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert "a has no picture: division by zero" in capsys.readouterr().err


def test_outputs_that_are_not_finite_are_no_label_map(model, tmp_path, quick_network, monkeypatch, capsys):
    """Fails if a network that overflows in half precision predicts a label map in silence."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    broken = lambda self, data: quick_network(self, data) * float("nan")  # noqa: E731
    monkeypatch.setattr(nnUNetPredictor, "predict_logits_from_preprocessed_data", broken)
    image = save_image(tmp_path / "a_0000.nii.gz")
    assert main(["predict", str(model()), str(image), "-o", str(tmp_path / "out"), "-device", "cpu"]) == 1
    assert "output is NaN or infinite" in capsys.readouterr().err
    assert not (tmp_path / "out" / "a.nii.gz").exists()


def test_weights_that_are_not_finite_are_refused(model):
    folder = model()
    path = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    next(iter(checkpoint["network_weights"].values())).view(-1)[0] = float("inf")
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="checkpoint_final.pth"):
        read_model_folder(folder)


def test_plans_of_a_stranger_run_nothing(model):
    """Fails if a function that plans.json names as the network is called: torch.hub.load runs a file of its choice."""
    folder = model()
    plans = json.loads((folder / "plans.json").read_text())
    architecture = {"network_class_name": "torch.hub.load", "arch_kwargs": {}, "_kw_requires_import": []}
    plans["configurations"]["2d"]["architecture"] = architecture
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(ValueError, match=r"plans.json: The plans name as network 'torch.hub.load'"):
        read_model_folder(folder)
