"""nnU-Net's readers, which may turn images: what is read, shown and written through them lies where it should."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from PIL import Image

from nnunet_din.commands.main import main
from nnunet_din.data.images import read_case, read_image, read_label_map
from nnunet_din.nnunet.images import channel_files, find_reader, write_label_map
from nnunet_din.nnunet.planned import PlannedModel
from nnunet_din.nnunet.prediction import find_cases

#: Affines of NIfTI files: as the axes run in the array, x to the left as most scanners store it, and axes exchanged.
AFFINES = {
    "RAS": np.diag([1.0, 1.2, 4.0, 1]),
    "LAS": np.diag([-1.0, 1.2, 4.0, 1]),
    "permuted": np.array([[0, 0, -3.0, 50], [-1.2, 0, 0, 20], [0, 1.5, 0, -30], [0, 0, 0, 1]]),
}


def volume(shape=(9, 14, 16)):
    """A volume that looks like none of its mirror images, and its label map; axes x, y, z."""
    image = np.random.default_rng(0).normal(100, 5, shape).astype(np.float32)
    image += 300 * np.linspace(0, 1, shape[0])[:, None, None] ** 2
    label = np.zeros(shape, np.uint8)
    label[1:4, 2:9, 3:7] = 1
    label[5:7, 3:6, 8:12] = 2
    return image, label


@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO, SimpleITKIOWithReorient, NibabelIOWithReorient])
def test_a_label_map_lies_where_its_image_lies(reader, affine, tmp_path):
    """Fails if a label map that is read is written to other voxels of the file."""
    image, label = volume()
    for name, array in (("image", image), ("label", label)):
        nibabel.save(nibabel.Nifti1Image(array, AFFINES[affine]), tmp_path / f"{name}.nii.gz")
    read = read_label_map(tmp_path / "label.nii.gz", reader())
    case = read_case([tmp_path / "image.nii.gz"], reader())
    assert read.shape == case.array.shape[1:] and not case.flat and not case.color
    assert case.array[0][read == 1].mean() == pytest.approx(image[label == 1].mean(), rel=1e-5)
    _, properties = reader().read_images([str(tmp_path / "image.nii.gz")])
    write_label_map(tmp_path / "out" / "written.nii.gz", read, properties, reader())
    written = nibabel.load(tmp_path / "out" / "written.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), label)
    np.testing.assert_allclose(written.affine, AFFINES[affine], atol=1e-5)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["written.nii.gz"], "and nothing else is left"


def test_stacks_keep_the_file_with_their_spacing(tmp_path):
    """Fails if the spacing file that nnU-Net's writer puts beside a TIFF stack is lost."""
    label = volume()[1]
    write_label_map(tmp_path / "c.tif", label, {"spacing": [6.0, 1.0, 2.0]}, Tiff3DIO())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.json", "c.tif"]
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "c.tif"), label)
    assert json.loads((tmp_path / "c.json").read_text())["spacing"] == [6.0, 1.0, 2.0]


def test_a_label_map_that_is_cut_off_is_no_label_map(tmp_path, monkeypatch):
    """Fails if what SimpleITK writes to a full disk, in silence, is taken for a label map."""
    image, label = volume()
    sitk.WriteImage(sitk.GetImageFromArray(image), str(tmp_path / "image.nii.gz"))
    _, properties = SimpleITKIO().read_images([str(tmp_path / "image.nii.gz")])
    target = tmp_path / "out" / "c.nii.gz"
    write_label_map(target, np.zeros_like(label), properties, SimpleITKIO())
    before = target.read_bytes()
    real = SimpleITKIO.write_seg

    def full(self, seg, output_fname, properties):
        real(self, seg, output_fname, properties)
        with open(output_fname, "r+b") as file:
            file.truncate(100)

    monkeypatch.setattr(SimpleITKIO, "write_seg", full)
    with pytest.raises(OSError, match="disk full"):
        write_label_map(target, label, properties, SimpleITKIO())
    assert target.read_bytes() == before and len(list(target.parent.iterdir())) == 1


def test_label_maps_have_one_whole_number_a_voxel(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.full((3, 4, 5), 0.5, np.float32)), str(tmp_path / "half.nii.gz"))
    with pytest.raises(ValueError, match=r"half.nii.gz: a label map has whole numbers, and this has 0\.5"):
        read_label_map(tmp_path / "half.nii.gz", SimpleITKIO())
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "rgb.png")
    with pytest.raises(ValueError, match=r"rgb.png: a label map has one number a voxel, and this has 3"):
        read_label_map(tmp_path / "rgb.png", NaturalImage2DIO())


def test_pictures_with_all_channels_in_one_file(tmp_path):
    """Fails if four channels in one PNG, which nnU-Net trains on, are no case or no image."""
    path = tmp_path / "eye_0000.png"
    Image.fromarray(np.arange(8 * 9 * 4, dtype=np.uint8).reshape(8, 9, 4)).save(path)
    names = {str(i): name for i, name in enumerate(("R", "G", "B", "vesselness"))}
    assert find_cases([tmp_path], {"channel_names": names, "file_ending": ".png"}) == {"eye": [path]}
    image, case = read_image(path), read_case([path], NaturalImage2DIO())
    assert image.array.shape == case.array.shape == (4, 1, 8, 9) and not image.color and not case.color
    np.testing.assert_array_equal(image.array, case.array)
    with pytest.raises(FileNotFoundError, match=r"eye_0001\.png does not exist: the data set has 3 channels"):
        channel_files(path, 3, ".png")
    assert main(["enhance", str(path), str(tmp_path / "enhanced.tif")]) == 0
    assert read_image(tmp_path / "enhanced.tif").array.shape == (4, 1, 8, 9)


def test_a_file_that_no_reader_takes_is_named_without_tracebacks(tmp_path, capsys):
    (tmp_path / "a.tif").write_text("no image")
    with pytest.raises(ValueError, match="can read .*a.tif"):
        find_reader(None, tmp_path / "a.tif")
    assert not capsys.readouterr().err


# ---- a data set whose reader turns its images ----


@pytest.fixture(params=["LAS", "permuted"])
def turned(request, tmp_path, plans, monkeypatch):
    """Data set 7 with one case, planned, and the affine of its image."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    raw, preprocessed = (tmp_path / name / "Dataset007_Turned" for name in ("raw", "preprocessed"))
    model = tmp_path / "results" / "Dataset007_Turned" / "nnUNetTrainerDIN__nnUNetDINPlans__2d"
    content = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "a": 1, "b": 2},
        "file_ending": ".nii.gz",
        "numTraining": 1,
        "overwrite_image_reader_writer": "NibabelIOWithReorient",
    }
    image, label = volume((40, 36, 10))
    validation = model / "fold_0" / "validation"
    for folder in (raw / "imagesTr", raw / "labelsTr", preprocessed, validation):
        folder.mkdir(parents=True)
    affine = AFFINES[request.param]
    nibabel.save(nibabel.Nifti1Image(image, affine), raw / "imagesTr" / "p_0000.nii.gz")
    for folder in (raw / "labelsTr", validation):
        nibabel.save(nibabel.Nifti1Image(label, affine), folder / "p.nii.gz")
    plans = {**plans, "image_reader_writer": "NibabelIOWithReorient", "dataset_name": raw.name}
    plans["configurations"]["2d"]["spacing"] = [1.2, 1.0]
    for folder in (raw, preprocessed, model):
        (folder / "dataset.json").write_text(json.dumps(content))
    for path in (preprocessed / "nnUNetDINPlans.json", model / "plans.json"):
        path.write_text(json.dumps(plans))
    return raw / "imagesTr" / "p_0000.nii.gz"


def test_the_enhanced_image_lies_on_the_grid_of_the_file(turned, tmp_path):
    """Fails if `enhance -d` writes the voxels in the order of the reader that turned them."""
    assert main(["enhance", str(turned), str(tmp_path / "enhanced.nii.gz"), "-d", "7", "--png"]) == 0
    image, enhanced = (nibabel.load(path) for path in (turned, tmp_path / "enhanced.nii.gz"))
    np.testing.assert_allclose(enhanced.affine, image.affine, atol=1e-5)
    similar = [np.corrcoef(image.get_fdata().ravel(), enhanced.get_fdata()[flip].ravel())[0, 1] for flip in
               (np.s_[:], np.s_[::-1], np.s_[:, ::-1], np.s_[:, :, ::-1])]  # fmt: skip
    assert np.argmax(similar) == 0 and similar[0] > 0.5


@pytest.mark.parametrize("key", ["image_reader_writer", "preprocessor_name"])
def test_enhance_runs_nothing_of_strangers(key, turned, tmp_path, capsys):
    """Fails if a name in the plans that is no class of nnU-Net's ends in a traceback, or is called."""
    path = tmp_path / "preprocessed" / "Dataset007_Turned" / "nnUNetDINPlans.json"
    plans = json.loads(path.read_text())
    (plans if key in plans else plans["configurations"]["2d"])[key] = "os"
    path.write_text(json.dumps(plans))
    assert main(["enhance", str(turned), str(tmp_path / "enhanced.nii.gz"), "-d", "7"]) == 1
    assert "plans" in capsys.readouterr().err and not (tmp_path / "enhanced.nii.gz").exists()


@pytest.mark.parametrize("header", ["no form", "another qform", "oblique"])
@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO, SimpleITKIOWithReorient, NibabelIOWithReorient])
def test_images_are_turned_back_as_they_were_read(reader, header, tmp_path):
    """Fails if another library than the reader's says how the axes of the file run: headers can be ambiguous."""
    image, path = volume()[0], tmp_path / "image.nii.gz"
    tilt = np.array([[0.8, 0.6, 0, 0], [-0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    file = nibabel.Nifti1Image(image, {"oblique": tilt @ AFFINES["permuted"]}.get(header, AFFINES["LAS"]))
    if header == "no form":
        file.header["sform_code"] = file.header["qform_code"] = 0
        file = nibabel.Nifti1Image(image, None, file.header)
    if header == "another qform":
        file.set_qform(np.diag([1.0, -1.2, 4.0, 1]), "scanner")
    nibabel.save(file, path)
    model = PlannedModel({}, {}, "2d")
    vars(model)["reader"] = reader()
    read = read_case([path], model.reader).array
    np.testing.assert_array_equal(model.as_stored(read.astype(np.float32), path)[0], image.T)


def test_figures_show_image_enhanced_image_and_labels_alike(turned, tmp_path, monkeypatch):
    """Fails if one of them is mirrored against the others."""
    from nnunet_din.commands import figure

    drawn = []
    real = figure.panel
    monkeypatch.setattr(figure, "panel", lambda rows, *more: drawn.extend(rows) or real(rows, *more))
    assert main(["figure", "-d", "7", "-f", "0", "--no-crop", "-o", str(tmp_path / "figure.png")]) == 0
    (row,) = drawn
    similar = [np.corrcoef(row["image"].ravel(), row["enhanced"][flip].ravel())[0, 1] for flip in
               (np.s_[:], np.s_[::-1], np.s_[:, ::-1])]  # fmt: skip
    assert np.argmax(similar) == 0 and similar[0] > 0.5
    np.testing.assert_array_equal(row["truth"], next(iter(row["predictions"].values())))


# ---- inputs are never outputs ----


@pytest.mark.parametrize("arguments", [["IN", "IN"], ["IN", "LINK"], ["PNG", "FOLDER/p_0000.nii.gz", "--png"]])
def test_enhance_never_writes_onto_its_input(arguments, tmp_path, capsys):
    image = tmp_path / "in.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(volume()[0]), str(image))
    (tmp_path / "link.nii.gz").hardlink_to(image)
    Image.fromarray(np.arange(72, dtype=np.uint8).reshape(8, 9)).save(tmp_path / "p_0000.png")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for key, value in {"IN": "in.nii.gz", "LINK": "link.nii.gz", "PNG": "p_0000.png"}.items():
        arguments = [str(tmp_path / value) if a == key else a for a in arguments]
    assert main(["enhance", *(a.replace("FOLDER", str(tmp_path)) for a in arguments)]) == 1
    assert "one of the inputs" in capsys.readouterr().err
    assert before.items() <= {path.name: path.read_bytes() for path in tmp_path.iterdir()}.items()
