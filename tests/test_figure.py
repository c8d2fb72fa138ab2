"""`nnunet-din figure`: which case, slice and region is shown, what is read from where, and what it says when not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_din.commands import figure
from nnunet_din.commands.main import main
from nnunet_din.enhancement import enhance_slices
from nnunet_din.evaluation.metrics import mean_dice

LABELS = {"background": 0, "RV": 1, "LV": 2}


def write(array, path, spacing=None, color=False):
    image = sitk.GetImageFromArray(array, isVector=color)
    if spacing:
        image.SetSpacing(spacing)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def truth_volume(shape=(4, 32, 40)):
    """A structure inside another, in all slices but the first."""
    label = np.zeros(shape, np.uint8)
    label[1:, 8:24, 10:26] = 1
    label[1:, 12:20, 14:22] = 2
    return label


def shifted(label, by):
    return np.roll(label, by, axis=-1)


def planned():
    """Plans of a DIN planner, for pixels of 1 mm and an enhancement that is not the default."""
    plans = json.loads((Path(__file__).parent / "fixtures" / "plans_44a6472.json").read_text())
    configuration = plans["configurations"]["2d"]
    configuration["spacing"] = [1.0, 1.0]
    configuration["enhancement"] |= {"m": 0, "n": 0}
    return plans


@pytest.fixture
def folders(tmp_path):
    """Four cases. Model A is better from case to case, model B is wrong by one pixel in slice 2 and by five in 3."""
    rng = np.random.default_rng(0)
    truth = truth_volume()
    for number in range(4):
        name = f"case{number}"
        write(rng.gamma(4, 50, truth.shape).astype(np.float32), tmp_path / "images" / f"{name}_0000.nii.gz", (1, 1, 5))
        write(truth, tmp_path / "gt" / f"{name}.nii.gz", (1, 1, 5))
        write(shifted(truth, 3 - number), tmp_path / "a" / f"{name}.nii.gz", (1, 1, 5))
        other = truth.copy()
        other[2], other[3] = shifted(truth[2], 1), shifted(truth[3], 5)
        write(other, tmp_path / "b" / f"{name}.nii.gz", (1, 1, 5))
    (tmp_path / "dataset.json").write_text(
        json.dumps({"labels": LABELS, "file_ending": ".nii.gz", "channel_names": {"0": "MR"}})
    )
    return tmp_path


@pytest.fixture
def drawn(monkeypatch):
    """What is handed to the drawing function: a list of (rows, names, style)."""
    calls = []
    real = figure.panel

    def panel(rows, names, style):
        calls.append((rows, names, style))
        return real(rows, names, style)

    monkeypatch.setattr(figure, "panel", panel)
    monkeypatch.setattr(figure, "_DPI", 30)
    return calls


def arguments(folder, *more, models=("a", "b")):
    predictions = [f"{model.upper()}={folder / model}" for model in models]
    return [
        "figure", "--images", str(folder / "images"), "--gt", str(folder / "gt"), "--pred", *predictions,
        "-o", str(folder / "out" / "figure.png"), *more,
    ]  # fmt: skip


# ---- from folders ----


def test_best_median_and_worst_case_of_the_first_model(folders, drawn, capsys):
    """Fails if the ranking follows another model, or the titles do not say which case it is and each model's Dice."""
    assert main(arguments(folders)) == 0
    ((rows, names, style),) = drawn
    titles = [row["name"] for row in rows]
    assert [title.split(",")[0] for title in titles] == ["case3", "case1", "case0"]
    assert titles[0].startswith("case3, slice 3 (best of 4): Dice A 1.000; B 0.")
    assert "(median of 4)" in titles[1] and "(worst of 4)" in titles[2]
    assert names == {1: "RV", 2: "LV"} and style == "filled"
    assert list(rows[0]["predictions"]) == ["A", "B"] and rows[0]["truth"] is not None
    assert (folders / "out" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert titles[0] in capsys.readouterr().out


def test_options_reach_the_picture(folders, drawn):
    """Fails if one of the switches has no effect, or the title shows the Dice of the slice and not of the volume."""
    more = ["--cases", "case1", "--slice", "1", "--no-crop", "--boxes", "0", "--style", "contour"]
    assert main(arguments(folders, *more, models=("b",))) == 0
    (((row,), _, style),) = drawn
    assert row["index"] == 1 and row["image"].shape == (32, 40) and row["boxes"] == [] and style == "contour"
    expected = mean_dice(sitk.GetArrayFromImage(sitk.ReadImage(str(folders / "b" / "case1.nii.gz"))), truth_volume())
    assert row["name"] == f"case1, slice 1: Dice B {expected:.3f}"


def test_slices_along_the_largest_spacing_or_the_given_axis(folders, drawn):
    """Fails if a volume is cut along the wrong axis, its pixels are stretched, or z does not point upwards."""
    image = np.random.default_rng(1).random((4, 32, 40)).astype(np.float32)
    for folder in ("images", "gt", "a"):
        array = image if folder == "images" else truth_volume()
        write(array, folders / folder / f"case9{'_0000' if folder == 'images' else ''}.nii.gz", (2, 3, 9))
    options = ["--cases", "case9", "--no-crop", "--slice", "2"]
    main(arguments(folders, *options, models=("a",)))
    main(arguments(folders, *options, "--axis", "1", models=("a",)))
    (row,), (coronal,) = (rows for rows, _, _ in drawn)
    np.testing.assert_allclose(row["image"], image[2])
    assert row["aspect"] == pytest.approx(3 / 2)
    np.testing.assert_allclose(coronal["image"], image[::-1, 2])
    assert coronal["aspect"] == pytest.approx(9 / 2)


def test_without_truth_there_is_no_dice(folders, drawn):
    """Fails if predictions of unlabelled images cannot be shown."""
    command = arguments(folders)
    at = command.index("--gt")
    assert main(command[:at] + command[at + 2 :]) == 0
    ((rows, _, _),) = drawn
    assert [row["name"] for row in rows] == ["case0, slice 1", "case1, slice 3", "case2, slice 3"]
    assert all(row["truth"] is None for row in rows)


@pytest.mark.slow
def test_plans_give_the_enhancement(folders, drawn):
    """Fails if the enhanced image is not the one that the network was trained on."""
    (folders / "plans.json").write_text(json.dumps(planned()))
    main(arguments(folders, "--cases", "case0", "--slice", "1", "--no-crop", "--plans", str(folders / "plans.json")))
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(folders / "images" / "case0_0000.nii.gz")))
    # nnU-Net's normalization is no change for the enhancement, and the spacing is the plans'.
    np.testing.assert_allclose(drawn[0][0][0]["enhanced"], enhance_slices(image[None], m=0, n=0)[0, 1], atol=1e-4)


def test_color_images(tmp_path, drawn):
    """Fails if photographs are shown in grey, or are not enhanced by luminosity."""
    image = np.random.default_rng(0).integers(0, 255, (20, 24, 3)).astype(np.uint8)
    label = truth_volume((2, 20, 24))[1]
    write(image, tmp_path / "images" / "x_0000.png", color=True)
    write(label, tmp_path / "gt" / "x.png")
    write(shifted(label, 4), tmp_path / "a" / "x.png")
    assert main(arguments(tmp_path, "--no-crop", models=("a",))) == 0
    (((row,), names, _),) = drawn
    np.testing.assert_array_equal(row["image"], image)
    expected = enhance_slices(np.moveaxis(image, -1, 0)[:, None].astype(np.float32), color=True)[:, 0]
    np.testing.assert_allclose(row["enhanced"], np.moveaxis(expected, 0, -1))
    assert row["name"].startswith("x (best of 1): Dice A 0.") and names == {}


def test_errors_name_the_cause(folders, capsys):
    """Fails if wrong input ends in a traceback, or in a message that does not say which file or option it is."""

    def error(*command):
        assert main(list(command)) == 1
        return capsys.readouterr().err

    assert "must end in .png, .pdf or .svg" in error(*arguments(folders), "-o", "figure.tiff")
    assert "Give either -d" in error("figure", "--images", str(folders))
    assert "--models and -f go with -d" in error(*arguments(folders, "-f", "0"))
    assert "--pred takes NAME=FOLDER, got 'folder'" in error(*arguments(folders, "--pred", "folder"))
    assert "--pred names two folders A" in error(*arguments(folders, models=("a", "a")))
    assert "nowhere/case0.nii.gz: no such file" in error(*arguments(folders, "--cases", "case0", models=("nowhere",)))
    assert "The case case7 has no image in" in error(*arguments(folders, "--cases", "case7"))
    assert "--slice 4: the case case3 has 4 of them, counted from 0" in error(*arguments(folders, "--slice", "4"))
    assert "--channel 3: the case case3 has 1 of them" in error(*arguments(folders, "--channel", "3"))
    write(truth_volume((4, 32, 41)), folders / "b" / "case2.nii.gz")
    assert "(4, 32, 41)" in error(*arguments(folders, "--cases", "case2"))
    plans = folders / "plans.json"
    plans.write_text('{"plans_name": "a", "dataset_name": "b", "configurations": {"2d": {}}}')
    assert "not made by a DIN planner" in error(*arguments(folders, "--plans", str(plans)))


# ---- from nnU-Net's folders ----

DIN, UNET = "nnUNetTrainerDIN__nnUNetDINPlans__2d", "nnUNetTrainer__nnUNetPlans__2d"


@pytest.fixture
def results(folders, monkeypatch):
    """Data set 27: DIN has predicted cases 0 to 2 in two folds, nnU-Net cases 0, 1 and 3, a third model nothing."""
    for name in ("raw", "preprocessed", "results"):
        (folders / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(folders / name))
    raw = folders / "raw" / "Dataset027_Test"
    shutil.copytree(folders / "images", raw / "imagesTr")
    shutil.copytree(folders / "gt", raw / "labelsTr")
    shutil.copy(folders / "dataset.json", raw)
    base = planned()["configurations"]["2d"]
    models = {
        DIN: ("a", {0: (0, 1), 1: (2,)}, {"2d": {"inherits_from": "base"}, "base": base}),
        UNET: ("b", {0: (0, 1), 1: (3,)}, {"2d": {}}),
        "nnUNetTrainer_new__nnUNetPlans__2d": ("b", {0: ()}, {"2d": {}}),
    }
    for name, (source, folds, configurations) in models.items():
        model = folders / "results" / "Dataset027_Test" / name
        for fold, cases in folds.items():
            (model / f"fold_{fold}" / "validation").mkdir(parents=True)
            for case in cases:
                shutil.copy(folders / source / f"case{case}.nii.gz", model / f"fold_{fold}" / "validation")
        (model / "plans.json").write_text(json.dumps({**planned(), "configurations": configurations}))
        shutil.copy(folders / "dataset.json", model)
    return folders


@pytest.mark.slow
def test_cross_validation_predictions_of_all_models(results, drawn, capsys):
    """Fails if a case is shown that a model has not predicted, or the best of them is not of the cases in common."""
    assert main(["figure", "-d", "27", "-o", str(results / "figure.png")]) == 0
    ((rows, names, _),) = drawn
    assert [row["name"].split(":")[0] for row in rows] == ["case1, slice 3 (best of 2)", "case0, slice 1 (worst of 2)"]
    assert names == {1: "RV", 2: "LV"}
    assert list(rows[0]["predictions"]) == ["nnUNetTrainerDIN, nnUNetDINPlans", "nnUNetTrainer, nnUNetPlans"]
    assert "Left out: nnUNetTrainer_new" in capsys.readouterr().out


def test_chosen_models_and_folds(results, drawn):
    """Fails if the order, the names or the fold on the command line are not followed, or the plans' numbers are not."""
    options = ["--models", f"Ours={DIN}", "-f", "1", "--slice", "1", "--no-crop", "-o", str(results / "figure.png")]
    assert main(["figure", "-d", "Dataset027_Test", *options]) == 0
    (((row,), _, _),) = drawn
    assert row["name"].startswith("case2") and list(row["predictions"]) == ["Ours"]
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(results / "images" / "case2_0000.nii.gz")))
    np.testing.assert_allclose(row["enhanced"], enhance_slices(image[None], m=0, n=0)[0, 1], atol=1e-4)


@pytest.mark.slow
def test_regions_are_named_and_scored_as_nnunet_does(results, drawn):
    """Fails if the legend takes a region's first value for its colour, or Dice is that of the values."""
    description = {"labels": {"background": 0, "whole": [1, 2], "inner": 2}, "regions_class_order": [1, 2]}
    target = results / "raw" / "Dataset027_Test" / "dataset.json"
    target.write_text(json.dumps({**description, "file_ending": ".nii.gz", "channel_names": {"0": "MR"}}))
    assert main(["figure", "-d", "27", "--models", DIN, "--cases", "case0", "-o", str(results / "figure.png")]) == 0
    (((row,), names, _),) = drawn
    assert names == {1: "whole", 2: "inner"}
    expected = mean_dice(shifted(truth_volume(), 3), truth_volume(), {"whole": (1, 2), "inner": (2,)})
    assert row["name"].endswith(f"{expected:.3f}")


def test_errors_about_trained_models_name_the_cause(results, capsys):
    """Fails if a missing model, fold or prediction ends in a traceback or does not say which one it is."""

    def error(*more):
        assert main(["figure", "-d", "27", "-o", str(results / "figure.png"), *more]) == 1
        return capsys.readouterr().err

    both = ("--models", f"D={DIN}", f"U={UNET}")
    assert "nnUNetTrainer_new__nnUNetPlans__2d has no" in error("--models", "nnUNetTrainer_new__nnUNetPlans__2d")
    assert f"{DIN} has no fold 4" in error("--models", DIN, "-f", "4")
    assert "case2 was not predicted by all of D, U" in error(*both, "--cases", "case2")
    assert "No case was predicted by all of D, U" in error(*both, "-f", "1")
    assert "leave out --images" in error("--images", "x")
