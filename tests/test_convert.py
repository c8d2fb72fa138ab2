"""``nnunet-din convert``, on tiny files that are laid out as the official archives."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunet_din.commands.main import main
from nnunet_din.data import raw_dataset
from nnunet_din.data.converters import acdc, clinicdb, isic18, synapse
from nnunet_din.data.converters.splits import split_80_10_10
from nnunet_din.data.raw_dataset import Case, pair_files

FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")
DIRECTION = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)


@pytest.fixture(autouse=True)
def nnunet(tmp_path, monkeypatch):
    """nnU-Net's folders, new for each test."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path


def volume(path, array, origin=(10.0, -20.0, 5.0), spacing=(1.5, 1.25, 8.0)):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(DIRECTION)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


def picture(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def noise(shape, low=0, high=256, dtype=np.uint8):
    return np.random.default_rng(0).integers(low, high, size=shape).astype(dtype)


def copies(template, paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(template, path)


def make_acdc(folder, patients=acdc.PATIENTS[:9], frames=(1, 12)):
    """Folder `training` of the archive; the 4-D film of each patient lies beside the frames, as it does there."""
    image = volume(folder / "image.nii.gz", noise((2, 4, 5), 0, 900, np.int16))
    label = volume(folder / "label.nii.gz", noise((2, 4, 5), 0, 4))
    for patient in patients:
        names = [f"{patient}_frame{frame:02d}" for frame in frames]
        here = folder / "training" / patient
        copies(image, [here / f"{patient}_4d.nii.gz", *(here / f"{name}.nii.gz" for name in names)])
        copies(label, [here / f"{name}_gt.nii.gz" for name in names])
    return folder


def make_synapse(folder):
    training = folder / "RawData" / "Training"
    image = volume(folder / "image.nii.gz", noise((2, 4, 7), -1000, 1000, np.int16))
    label = volume(folder / "label.nii.gz", np.arange(56, dtype=np.uint8).reshape(2, 4, 7) % 14)
    numbers = [name.removeprefix("case") for name in synapse.SCANS]
    copies(image, [training / "img" / f"img{number}.nii.gz" for number in numbers])
    copies(label, [training / "label" / f"label{number}.nii.gz" for number in numbers])
    return folder


def make_clinicdb(folder, frames=range(1, 613), ending="tif"):
    image = picture(folder / f"image.{ending}", noise((6, 8, 3)))
    mask = picture(folder / f"mask.{ending}", np.repeat(noise((6, 8, 1), 0, 2) * 255, 3, axis=-1))
    copies(image, [folder / "Original" / f"{number}.{ending}" for number in frames])
    copies(mask, [folder / "Ground Truth" / f"{number}.{ending}" for number in frames])
    return folder


def make_isic18(folder, counts):
    image = picture(folder / "image.jpg", noise((6, 8, 3)))
    mask = picture(folder / "mask.png", noise((6, 8), 0, 2) * 255)
    number = 0
    for part, count in counts.items():
        names = [f"ISIC_{index:07d}" for index in range(number, number + count)]
        number += count
        copies(image, [folder / f"ISIC2018_Task1-2_{part}_Input" / f"{name}.jpg" for name in names])
        masks = folder / f"ISIC2018_Task1_{part}_GroundTruth"
        copies(mask, [masks / f"{name}_segmentation.png" for name in names])
        (folder / f"ISIC2018_Task1-2_{part}_Input" / "LICENSE.txt").write_text("CC")
    return folder


def read_json(path):
    return json.loads(path.read_text())


def cases_of(folder, ending):
    return {name: {path.name.removesuffix(ending) for path in (folder / name).iterdir()} for name in FOLDERS}


def snapshot(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*") if path.is_file()}


def check_as_nnunet_does(folder):
    """What nnUNetv2_plan_and_preprocess --verify_dataset_integrity checks, without its worker processes."""
    from nnunetv2.experiment_planning.verify_dataset_integrity import check_cases, verify_labels
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    description = read_json(folder / "dataset.json")
    training = get_filenames_of_train_images_and_targets(str(folder), description)
    assert len(training) == description["numTraining"]
    reader = determine_reader_writer_from_dataset_json(description, verbose=False)
    labels = sorted(description["labels"].values())
    assert labels == list(range(len(labels)))
    for case in list(training.values())[:3]:
        assert verify_labels(case["label"], reader, labels)
        assert check_cases(case["images"], case["label"], len(description["channel_names"]), reader)
    folds = read_json(folder / "splits_final.json")
    assert {name for fold in folds for part in fold.values() for name in part} == set(training)
    return reader


def check_folds(folds, names, group=lambda name: name):
    """Folds 0 to 4 validate each case once and have no group on both sides."""
    assert sorted(name for fold in folds[:5] for name in fold["val"]) == sorted(names)
    for fold in folds:
        assert not {group(name) for name in fold["train"]} & {group(name) for name in fold["val"]}
    for fold in folds[:5]:
        assert sorted(fold["train"] + fold["val"]) == sorted(names)


# ---- the four data sets ----


def cases_named(names, group=str):
    return [Case(name, Path(), Path(), group(name)) for name in names]


def test_acdc_has_the_published_split_and_folds_by_patient():
    names = [f"{patient}_frame{frame}" for patient in acdc.PATIENTS for frame in ("01", "12")]
    split = acdc.DATASET.split(cases_named(names, group=lambda name: name[:10]))
    assert len(split.test) == 40 and {name[:10] for name in split.test} == set(acdc.TEST)
    check_folds(split.folds, set(names) - split.test, group=lambda name: name[:10])
    assert [len(fold["val"]) for fold in split.folds] == [32, 32, 32, 32, 32, 20]
    assert {name[:10] for name in split.folds[5]["val"]} == set(acdc.VALIDATION) and len(split.folds[5]["train"]) == 140


def test_acdc_files_are_those_of_the_archive(tmp_path):
    """Fails if images are encoded anew, or if labels lose their values or the image's geometry."""
    source = make_acdc(tmp_path / "download", frames=(4, 11))
    label = noise((2, 4, 5), 0, 4).astype(np.float32)
    original = source / "training" / "patient001" / "patient001_frame04.nii.gz"
    volume(original.with_name("patient001_frame04_gt.nii.gz"), label, origin=(10.0004, -20.0, 5.0))
    assert main(["convert", "acdc", str(source / "training"), "--allow-incomplete", "-d", "999"]) == 0
    folder = tmp_path / "raw" / "Dataset999_ACDC"
    copied = folder / "imagesTr" / "patient001_frame04_0000.nii.gz"
    assert copied.read_bytes() == original.read_bytes()
    written, image = sitk.ReadImage(str(folder / "labelsTr" / "patient001_frame04.nii.gz")), sitk.ReadImage(str(copied))
    assert written.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), label)
    assert written.GetOrigin() == pytest.approx(image.GetOrigin(), abs=1e-6)
    assert written.GetSpacing() == pytest.approx(image.GetSpacing(), abs=1e-6)
    assert written.GetDirection() == image.GetDirection()


def test_synapse_keeps_eight_organs_in_the_papers_order(tmp_path, capsys):
    """From any folder of the archive; a second run changes nothing."""
    source = make_synapse(tmp_path / "download")
    assert main(["convert", "synapse", str(source)]) == 0
    folder = tmp_path / "raw" / "Dataset111_Synapse"
    names = cases_of(folder, ".nii.gz")
    assert len(names["labelsTr"]) == 18
    assert names["labelsTs"] == set(synapse.TEST) and len(names["imagesTs"]) == 12
    folds = read_json(folder / "splits_final.json")
    assert len(folds) == 5
    check_folds(folds, names["labelsTr"])
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTr" / "case0005.nii.gz")))
    # BTCV:   spleen, right and left kidney, gallbladder, esophagus, liver, stomach, aorta, two veins, pancreas, glands
    expected = np.array([0, 7, 4, 3, 2, 0, 5, 8, 1, 0, 0, 6, 0, 0], dtype=np.uint8)
    np.testing.assert_array_equal(written.ravel(), np.tile(expected, 4))
    description = read_json(folder / "dataset.json")
    assert description["channel_names"] == {"0": "CT"}
    table = ["aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach"]
    assert description["labels"] == {"background": 0, **{name: value for value, name in enumerate(table, start=1)}}
    check_as_nnunet_does(folder)
    before = snapshot(tmp_path / "raw") | snapshot(tmp_path / "preprocessed")
    capsys.readouterr()
    for part in ("RawData", "RawData/Training"):
        assert main(["convert", "synapse", str(source / part)]) == 0
        assert "is complete: 18 training and 12 test cases. Nothing was changed." in capsys.readouterr().out
    assert snapshot(tmp_path / "raw") | snapshot(tmp_path / "preprocessed") == before


def test_synapse_folds_are_those_that_nnunet_would_make(tmp_path):
    """Fails if the folds of data without patients to keep together differ from nnU-Net's own."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    assert synapse.DATASET.split(cases_named(synapse.SCANS)).folds == [
        {part: sorted(fold[part]) for part in ("train", "val")}
        for fold in generate_crossval_split(sorted(set(synapse.SCANS) - set(synapse.TEST)))
    ]


def test_clinicdb_is_split_by_frame_without_metadata(tmp_path):
    found = clinicdb.find(make_clinicdb(tmp_path / "download", range(1, 41)))
    assert "near-identical frames" in found.notes[0]
    assert found.problems[0] == "no image and no label of clinicdb_041" and len(found.problems) == 572
    assert {case.group for case in found.cases} == {case.name for case in found.cases}


@pytest.mark.parametrize("place", ["download", "download/PNG"])
def test_clinicdb_keeps_sequences_whole_with_metadata(place, tmp_path, capsys):
    """Fails if frames of one video sequence are on both sides although the sequences are known."""
    frames = range(1, 120)
    make_clinicdb(tmp_path / "download" / "PNG", frames, ending="png")
    rows = [f"{frame},{(frame - 1) // 7 + 1},PNG/Original/{frame}.png" for frame in frames]
    table = "frame_id,sequence_id,png_image_path\n" + "\n".join(rows) + "\n"
    (tmp_path / "download" / "metadata.csv").write_text(table, encoding="utf-8-sig")
    found = clinicdb.find(tmp_path / place)
    assert "keeps video sequences whole" in found.notes[0] and len(found.cases) == 119
    split = clinicdb.DATASET.split(found.cases)

    def sequence(name):
        return (int(name[-3:]) - 1) // 7

    training = {case.name for case in found.cases} - split.test
    check_folds(split.folds, training, group=sequence)
    assert not {*map(sequence, training)} & {*map(sequence, split.test)}
    assert len(split.test) == 7  # whole sequences that fit into 12 frames


@pytest.mark.parametrize("rows", ["1,first\n", "1,1\n"], ids=["no number", "frames missing"])
def test_clinicdb_refuses_metadata_that_it_cannot_use(rows, tmp_path):
    source = make_clinicdb(tmp_path / "download", range(1, 9))
    (source / "metadata.csv").write_text("frame_id,sequence_id\n" + rows)
    with pytest.raises(ValueError, match="metadata.csv has no"):
        clinicdb.find(source)


def test_isic18_uses_all_parts(tmp_path, monkeypatch, capsys):
    counts = {"Training": 26, "Validation": 4, "Test": 10}
    monkeypatch.setattr(isic18, "PARTS", counts)
    source = make_isic18(tmp_path / "download", counts)
    assert main(["convert", "isic18", str(source)]) == 0
    assert "40 images: 26 of Training, 4 of Validation, 10 of Test" in capsys.readouterr().out
    folder = tmp_path / "raw" / "Dataset113_ISIC18"
    names = cases_of(folder, ".png")
    assert len(names["labelsTr"]) == 36 and len(names["labelsTs"]) == 4
    folds = read_json(folder / "splits_final.json")
    check_folds(folds, names["labelsTr"])
    assert len(folds[5]["train"]) == 32 and len(folds[5]["val"]) == 4
    name = folds[0]["val"][0]
    np.testing.assert_array_equal(
        np.asarray(Image.open(folder / "imagesTr" / f"{name}_0000.png")),
        np.asarray(Image.open(source / "ISIC2018_Task1-2_Training_Input" / "ISIC_0000000.jpg")),
    )
    assert check_as_nnunet_does(folder).__name__ == "NaturalImage2DIO"
    mask = Image.open(folder / "labelsTr" / f"{name}.png")
    assert mask.mode == "L"
    np.testing.assert_array_equal(np.asarray(mask), noise((6, 8), 0, 2))


def test_isic18_parts_may_be_absent_but_not_cut_short(tmp_path, monkeypatch):
    monkeypatch.setattr(isic18, "PARTS", {"Training": 26, "Validation": 4, "Test": 10})
    source = make_isic18(tmp_path / "download", {"Training": 26, "Test": 9})
    assert isic18.find(source).problems == ["9 images in place of 10 in the part Test"]
    for path in source.glob("*_Test_*"):
        shutil.rmtree(path)
    assert not isic18.find(source).problems


def test_the_random_split_of_the_paper_is_the_same_everywhere():
    """Fails if the seeded 80:10:10 split of ISIC's 3594 images changes, so that numbers cannot be compared."""
    cases = cases_named([f"ISIC_{index:07d}" for index in range(3594)])
    split = split_80_10_10(cases)
    assert len(split.test) == 359
    assert [len(split.folds[5][part]) for part in ("train", "val")] == [2876, 359]
    assert not split.test & {*split.folds[5]["train"], *split.folds[5]["val"]}
    assert sorted(split.test)[:3] == ["ISIC_0000011", "ISIC_0000015", "ISIC_0000020"]
    assert split.folds[5]["val"][:3] == ["ISIC_0000012", "ISIC_0000023", "ISIC_0000028"]
    assert split_80_10_10(cases[::-1]).test == split.test


# ---- going on, and what is there already ----


def test_an_interrupted_run_goes_on_with_the_missing_cases(tmp_path, monkeypatch, capsys):
    """Fails if an interruption leaves half a file under its final name, or if finished cases are written again."""
    monkeypatch.setattr(raw_dataset, "_THREADS", 1)
    source, count = make_synapse(tmp_path / "download"), 0
    copyfile = shutil.copyfile

    def interrupted(source, target):
        nonlocal count
        count += 1
        if count == 8:
            Path(target).write_bytes(Path(source).read_bytes()[:20])
            raise KeyboardInterrupt
        return copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", interrupted)
    assert main(["convert", "synapse", str(source)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "nnunet-din convert: stopped."
    folder = tmp_path / "raw" / "Dataset111_Synapse"
    before = snapshot(folder)
    assert 14 <= len(before) < 60 and not (folder / "dataset.json").exists()
    assert not [path for path in before if path.stat().st_size == 20]
    monkeypatch.setattr(shutil, "copyfile", copyfile)
    capsys.readouterr()
    assert main(["convert", "synapse", str(source)]) == 0
    assert f"18 training and 12 test cases, {30 - len(before) // 2} of them in this run" in capsys.readouterr().out
    assert before.items() <= snapshot(folder).items()
    check_as_nnunet_does(folder)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Synapse's archive, which tests only read."""
    return make_synapse(tmp_path_factory.mktemp("archive"))


def test_other_files_are_never_overwritten(archive, tmp_path, capsys):
    """Fails if cases of another conversion stay in the data set unnoticed, where nnU-Net would train on them."""
    splits = tmp_path / "preprocessed" / "Dataset111_Synapse" / "splits_final.json"
    splits.parent.mkdir(parents=True)
    splits.write_text("[]")
    assert main(["convert", "synapse", str(archive)]) == 1
    assert f"{splits} exists with other content and is not overwritten" in capsys.readouterr().err
    assert splits.read_text() == "[]" and not list((tmp_path / "raw").glob("*/images*"))
    other = tmp_path / "raw" / "Dataset111_Synapse" / "imagesTr" / "case0001_0000.nii.gz"
    other.parent.mkdir(parents=True)
    other.touch()
    assert main(["convert", "synapse", str(archive)]) == 1
    assert "holds 1 other files, the first is case0001_0000.nii.gz" in capsys.readouterr().err
    (tmp_path / "results" / "Dataset007_Mine").mkdir(parents=True)
    assert main(["convert", "synapse", str(archive), "-d", "7"]) == 1
    assert "already holds Dataset007_Mine; choose another number" in capsys.readouterr().err


def test_where_it_is_written(archive, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_raw")
    monkeypatch.delenv("nnUNet_preprocessed")
    assert main(["convert", "synapse", str(archive)]) == 1
    assert "nnUNet_raw is not set" in capsys.readouterr().err
    assert main(["convert", "synapse", str(archive), "-o", str(tmp_path / "mine"), "-d", "7"]) == 0
    assert (tmp_path / "mine" / "Dataset007_Synapse" / "dataset.json").exists()
    out = capsys.readouterr().out
    assert f"nnUNet_raw is set to {tmp_path / 'mine'}" in out and "copy splits_final.json" in out
    assert "-d 7 " in out


# ---- what cannot be converted ----


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [("acdc", "patientXXX_frameYY"), ("synapse", "imgNNNN"), ("clinicdb", "Ground Truth"), ("isic18", "_segmentation")],
)
def test_another_layout_says_what_was_expected(dataset, expected, tmp_path, capsys):
    (tmp_path / "download" / "something").mkdir(parents=True)
    (tmp_path / "download.zip").touch()
    assert main(["convert", dataset, str(tmp_path / "download")]) == 1
    assert expected in capsys.readouterr().err
    assert main(["convert", dataset, str(tmp_path / "download.zip")]) == 1
    assert "unpack the archive" in capsys.readouterr().err
    assert not (tmp_path / "raw").exists()


def test_what_is_missing_is_named(tmp_path, capsys):
    """ACDC with nine patients, a label and an image less: nothing is written, or what is there and no fold 5."""
    source = make_acdc(tmp_path / "download")
    training = source / "training"
    (training / "patient001" / "patient001_frame01_gt.nii.gz").unlink()
    (training / "patient004" / "patient004_frame12.nii.gz").unlink()
    assert main(["convert", "acdc", str(source)]) == 1
    error = capsys.readouterr().err
    assert "0 frames of patient010 in place of 2" in error and "88 more" in error
    assert "--allow-incomplete" in error and not (tmp_path / "raw").exists()
    assert {"no label of patient001_frame01", "no image of patient004_frame12"} < {*acdc.find(source).problems}
    assert main(["convert", "acdc", str(source), "--allow-incomplete"]) == 0
    out = capsys.readouterr().out
    assert "there is no fold 5" in out and "16 cases are there" in out
    folder = tmp_path / "raw" / "Dataset027_ACDC"
    assert len(read_json(folder / "splits_final.json")) == 5 and len(list((folder / "labelsTr").iterdir())) == 8
    with pytest.raises(ValueError, match="n_splits=5"):
        acdc.DATASET.split(acdc.find(source).cases[:4])


def test_scans_that_do_not_belong_there_are_named(tmp_path):
    image = tmp_path / "a.nii.gz"
    found = pair_files({"a": image, "b": image}, {"a": image, "b": image}, ["a", "c"])
    assert [case.name for case in found.cases] == ["a"]
    assert found.problems == ["no image and no label of c", "b does not belong there"]


VOLUME = (2, 4, 7)


@pytest.mark.parametrize(
    ("array", "geometry", "message"),
    [
        (np.full(VOLUME, 14, np.uint8), {}, "holds the label 14; allowed are 0, 1, 2,"),
        (np.full(VOLUME, 0.5, np.float32), {}, "holds the label 0.5;"),
        (np.full(VOLUME, 257, np.int16), {}, "holds the label 257;"),
        (np.zeros((2, 4, 6), np.uint8), {}, "image and label differ in size, (7, 4, 2) and (6, 4, 2)"),
        (np.zeros(VOLUME, np.uint8), {"spacing": (1.5, 1.25, 8.1)}, "image and label differ in spacing"),
        (np.zeros(VOLUME, np.uint8), {"origin": (10, -20, 6)}, "image and label differ in origin"),
        (None, {}, "label0005.nii.gz is damaged or cut off"),
    ],
)
def test_a_label_that_cannot_be_used_is_named(array, geometry, message, tmp_path):
    image = volume(tmp_path / "img0005.nii.gz", noise(VOLUME))
    path = volume(tmp_path / "label0005.nii.gz", np.zeros(VOLUME) if array is None else array, **geometry)
    if array is None:
        path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        synapse.DATASET.write(Case("case0005", image, path, ""), tmp_path / "image.nii.gz", tmp_path / "out.nii.gz")
    assert "case0005" in str(error.value) or "label0005" in str(error.value)
    assert not (tmp_path / "out.nii.gz").exists()


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (noise((6, 8, 3)), noise((6, 8)), "is not a mask"),
        (noise((6, 8, 3)), noise((6, 7), 0, 2) * 255, "image and mask differ in size, (8, 6) and (7, 6) pixels"),
        (noise((6, 8)), noise((6, 8), 0, 2) * 255, "is not an RGB image"),
        (noise((6, 8, 3)), None, "cannot be read as an image"),
    ],
)
def test_a_picture_that_cannot_be_used_is_named(image, mask, message, tmp_path):
    files = picture(tmp_path / "3.tif", image), tmp_path / "3_mask.tif"
    if mask is None:
        files[1].write_bytes(b"II*\0")
    else:
        picture(files[1], mask)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        clinicdb.DATASET.write(Case("clinicdb_003", *files, ""), tmp_path / "image.png", tmp_path / "out.png")
    assert "clinicdb_003" in str(error.value) or "3_mask.tif" in str(error.value)


@pytest.mark.parametrize("mask", [[0, 1], [0, 255], [3, 250], [False, True]], ids=str)
def test_masks_of_two_values_become_0_and_1(mask, tmp_path):
    """Fails if masks of 0 and 1, or masks that lost their exact values to compression, come out empty or full."""
    array = np.array(mask)[noise((6, 8), 0, 2)]
    path = picture(tmp_path / "mask.tif", array if array.dtype == bool else array.astype(np.uint8))
    case = Case("a", picture(tmp_path / "image.tif", noise((6, 8, 3))), path, "")
    clinicdb.DATASET.write(case, tmp_path / "image.png", tmp_path / "out.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")), noise((6, 8), 0, 2))
