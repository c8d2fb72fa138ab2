"""Damaged images, impossible voxels and labels: nothing is silent, in the preprocessor and in our own commands."""

from __future__ import annotations

import errno
import gzip
import os
import struct
from contextlib import nullcontext
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_din.commands.main import main
from nnunet_din.data import files
from nnunet_din.data.images import read_image, write_image
from nnunet_din.data.integrity import check_file, find_outlier
from nnunet_din.planners.din_preprocessor import DINPreprocessor


@pytest.fixture
def setting(dataset, plans):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    return manager, manager.get_configuration("2d"), dataset.dataset_json


def image(shape=(6, 40, 36), dtype=np.int16):
    return np.random.default_rng(0).gamma(4, 50, size=shape).astype(dtype)


def write(path, array, spacing=(1.5, 1.5, 8.0), vector=False):
    volume = sitk.GetImageFromArray(array, isVector=vector)
    if volume.GetDimension() == 3:
        volume.SetSpacing(spacing)
    sitk.WriteImage(volume, str(path), useCompression=True)
    return path


def preprocess(setting, images, label=None):
    files = [str(file) for file in images]
    return DINPreprocessor(verbose=False).run_case(files, None if label is None else str(label), *setting)


# ---- files ----


@pytest.mark.parametrize("percent", [1, 90, 99.9])
@pytest.mark.parametrize("where", ["gzip", "inside"])
def test_a_file_that_was_cut_off_is_refused(percent, where, setting, tmp_path):
    """SimpleITK reads most of these without a word."""
    path = write(tmp_path / "case_0000.nii.gz", image())
    content = path.read_bytes() if where == "gzip" else gzip.decompress(path.read_bytes())
    content = content[: int(len(content) * percent / 100)]
    path.write_bytes(content if where == "gzip" else gzip.compress(content))
    for read in (read_image, lambda file: preprocess(setting, [file])):
        with pytest.raises(
            ValueError, match="case_0000.nii.gz (is damaged or cut off|is cut off|is no NIfTI|has a dam)"
        ):
            read(path)


def test_a_flipped_bit_is_found_by_the_checksum(tmp_path):
    path = write(tmp_path / "case.nii.gz", image())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="case.nii.gz is damaged"):
        check_file(path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("version", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", ["<i2", ">f4", "<f8"])
def test_files_that_are_whole_pass(ending, version, dtype, tmp_path):
    header = version.header_class(endianness=dtype[0] if dtype[0] in "<>" else "<")
    header.set_data_dtype(dtype.lstrip("<>"))
    path = tmp_path / f"case{ending}"
    nibabel.save(version(image().T.astype(dtype), np.eye(4), header), path)
    check_file(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_as_stored(bad, setting, tmp_path):
    """SimpleITK makes 0 of them."""
    array = image(dtype=np.float32)
    array[2, 3, 4] = array[5, 0, 0] = bad
    path = write(tmp_path / "case_0000.nii.gz", array)
    message = r"case_0000.nii.gz has 2 NaN or infinite voxels of 8640, the first at \(x, y, z\) = \(4, 3, 2\)"
    for read in (read_image, lambda file: preprocess(setting, [file])):
        with pytest.raises(ValueError, match=message):
            read(path)


@pytest.mark.parametrize("bad", [0, -1, np.nan, np.inf])
@pytest.mark.parametrize("version", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_spacing_that_readers_replace(bad, version, setting, tmp_path):
    """SimpleITK makes 1 mm of it, also where the affine knows better."""
    volume = version(image().T, np.diag([1, 1, 3, 1]))
    content = bytearray(volume.to_bytes())
    header = np.frombuffer(content, volume.header.template_dtype, 1)
    header["pixdim"][0, 3] = bad
    path = tmp_path / "case_0000.nii.gz"
    path.write_bytes(gzip.compress(bytes(content)))
    for read in (read_image, lambda file: preprocess(setting, [file])):
        with pytest.raises(ValueError, match=rf"case_0000.nii.gz has the spacing 1 x 1 x {bad:g} in its header"):
            read(path)


def test_files_whose_names_say_another_packing(tmp_path):
    """nnU-Net's reader takes an unpacked file that is called .nii.gz, and none that is packed and called .nii."""
    content = nibabel.Nifti1Image(image().T, np.eye(4)).to_bytes()
    path = tmp_path / "case.nii.gz"
    path.write_bytes(content)
    np.testing.assert_array_equal(read_image(path).array[0], image())
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="case.nii.gz is cut off"):
        check_file(path)
    path = tmp_path / "case.nii"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match="case.nii is compressed, .* rename it to case.nii.gz"):
        check_file(path)


@pytest.mark.parametrize("ending", [".nii.gz", ".png"])
def test_names_that_are_not_utf8(ending):
    """SimpleITK ends the whole process at them."""
    path = Path(os.fsdecode(b"M\xfcller_0000" + ending.encode()))
    with pytest.raises(ValueError, match=r"M\\xfcller_0000.*rename it"):
        check_file(path)


def test_whole_numbers_that_float32_cannot_tell_apart(tmp_path):
    """In every format: the image would be constant. Without what they have in common they are read as they are."""
    path, array = tmp_path / "case.mha", np.random.default_rng(0).integers(0, 30, (8, 10, 12))
    write(path, array)
    np.testing.assert_array_equal(read_image(path).array[0], array)
    write(path, array + 2**30)
    with pytest.raises(ValueError, match=r"case.mha has values up to 1.07374e\+09, so large that float32"):
        check_file(path)


@pytest.mark.parametrize(
    ("voxels", "slope", "intercept", "refused"),
    [
        (np.arange(60.0), 1, 2.0**30, True),
        (np.arange(60, dtype=np.int16), 1, 2.0**30, True),
        (np.arange(60, dtype=np.int16), 1e38, 0, True),
        (1e300 * np.arange(60.0), 1, 0, True),
        (np.repeat(np.arange(30.0), 2) + 1e-12 * np.arange(60), 1, 0, False),
        (1e30 * np.arange(60.0), 1, 0, False),
    ],
    ids=["doubles", "scaled", "overflow by scaling", "overflow", "rounding errors", "large"],
)
def test_numbers_that_float32_cannot_hold(voxels, slope, intercept, refused, tmp_path):
    """Fails if numbers that only the header's scaling makes large become a constant image in silence."""
    path = tmp_path / "case.nii"
    if voxels.dtype.kind == "f":
        voxels = voxels * slope + intercept
    nibabel.save(nibabel.Nifti1Image(voxels.reshape(3, 4, 5), np.eye(4)), path)
    content = bytearray(path.read_bytes())
    if voxels.dtype.kind == "i":
        struct.pack_into("<ff", content, 112, slope, intercept)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="so large that float32") if refused else nullcontext():
        check_file(path)


# ---- images ----


def test_an_outlier_that_flattens_the_image(setting, tmp_path):
    array = image(dtype=np.float32)
    array[1, 2, 3] = 1e20
    path = write(tmp_path / "case_0000.nii.gz", array)
    message = r"case_0000.nii.gz: Channel 0 has the value 1e\+20 at \(z, y, x\) = \(1, 2, 3\), beside which all others"
    with pytest.raises(ValueError, match=message):
        preprocess(setting, [path])


def test_an_image_whose_variance_float32_cannot_hold(setting, tmp_path):
    """nnU-Net's z-score makes a constant image of it."""
    path = write(tmp_path / "case_0000.nii.gz", image(dtype=np.float32) * 1e28)
    with pytest.raises(ValueError, match="case_0000.nii.gz: Channel 0 has the value .* scale the image"):
        preprocess(setting, [path])


def test_bright_voxels_are_no_outliers(setting, tmp_path):
    """Metal in CT, labels in an image, and what nnU-Net clips."""
    array = image(dtype=np.float32)
    array[1, 2, 3] = 1e5
    preprocess(setting, [write(tmp_path / "case_0000.nii.gz", array)])
    array[1, 2, 3] = 1e20
    assert find_outlier(array, np.clip(array, 0, 300)) is None
    assert find_outlier((array > 1e19).astype(np.float32), array) is None


@pytest.mark.parametrize(
    ("array", "spacing", "vector", "message"),
    [
        (np.zeros((2, 3, 20, 20), np.int16), None, False, "has 2 channels of 3 x 20 x 20 voxels, and the data"),
        (np.ones((6, 20, 20, 3), np.uint8), (1, 1, 8), True, "has 6 channels of 20 x 20 x 3 voxels"),
        (image(), (1e-3, 1e-3, 1e-3), False, "less than one voxel .* 0.001 x 0.001 x 0.001 mm in the file"),
        (np.pad(np.ones((1, 1, 1), np.int16), 6), (0.2, 0.2, 8), False, "1 x 1 x 1 voxels of the image, all that"),
    ],
    ids=["4-D", "vector", "spacing in metres", "nearly empty"],
)  # fmt: skip
def test_images_of_another_kind(array, spacing, vector, message, setting, tmp_path):
    path = write(tmp_path / "case_0000.nii.gz", array, spacing or (1, 1, 1), vector)
    with pytest.raises(ValueError, match=f"case_0000.nii.gz: .*{message}"):
        preprocess(setting, [path])


def test_pictures_that_are_cut_off_or_have_opacity(setting, tmp_path):
    from skimage import io

    manager, configuration, dataset_json = setting
    manager.plans["image_reader_writer"] = "NaturalImage2DIO"
    path = tmp_path / "case_0000.png"
    io.imsave(path, np.full((30, 30, 4), 9, np.uint8), check_contrast=False)
    with pytest.raises(ValueError, match="case_0000.png: .*has 4 channels .* without a fourth channel for opacity"):
        preprocess((manager, configuration, {**dataset_json, "channel_names": dict(enumerate("RGB"))}), [path])
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match="case_0000.png: "):
        preprocess(setting, [path])


# ---- labels ----


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [(255, np.uint8, "255"), (1.5, np.float32, "1.5"), (40000, np.uint16, "40000"), (-25536, np.int16, "-25536")],
)
def test_labels_that_the_data_set_does_not_have(value, dtype, said, setting, tmp_path):
    label = np.zeros((6, 40, 36), dtype)
    label[3, 4, 5] = label[4, 4, 5] = value
    files = write(tmp_path / "case_0000.nii.gz", image()), write(tmp_path / "case.nii.gz", label)
    message = (
        rf"case.nii.gz: the value {said} at \(z, y, x\) = \(3, 4, 5\), and 2 such voxels .*labels .*: 0, 1, 2, 3\."
    )
    with pytest.raises(ValueError, match=message):
        preprocess(setting, files[:1], files[1])


@pytest.mark.parametrize(
    ("shape", "vector", "message"),
    [
        ((6, 40, 35), False, r"it has 6 x 40 x 35 voxels, and the image has 6 x 40 x 36"),
        ((6, 40, 36, 3), True, r"it has 6 channels"),
        ((2, 6, 40, 36), False, r"it has 2 channels.* one number a voxel"),
    ],
    ids=["another size", "vectors", "4-D"],
)
def test_label_maps_of_another_shape(shape, vector, message, setting, tmp_path):
    files = write(tmp_path / "case_0000.nii.gz", image()), tmp_path / "case.nii.gz"
    write(files[1], np.zeros(shape, np.uint8), vector=vector)
    with pytest.raises(ValueError, match=f"case.nii.gz: {message}"):
        preprocess(setting, files[:1], files[1])


# ---- what we write ----


def test_an_image_that_the_disk_did_not_take_is_no_file(tmp_path, monkeypatch):
    """SimpleITK ends without an error on a full disk, and leaves a file with zeros."""
    source = write(tmp_path / "in.nii.gz", image())
    real = sitk.WriteImage

    def half(volume, path, **options):
        real(volume * 0, path, **options)

    monkeypatch.setattr(sitk, "WriteImage", half)
    with pytest.raises(OSError, match="is the disk full"):
        write_image(tmp_path / "out.nii.gz", image()[None].astype(np.float32), like=source)
    assert os.listdir(tmp_path) == ["in.nii.gz"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_errors_of_the_disk_are_one_line(code, tmp_path, monkeypatch, capsys):
    write(tmp_path / "in.nii.gz", image())

    def fail(self, *args, **kwargs):
        raise OSError(code, os.strerror(code), str(self))

    monkeypatch.setattr(Path, "replace", fail)
    monkeypatch.setattr(files, "_PATIENCE", 0)
    assert main(["enhance", str(tmp_path / "in.nii.gz"), str(tmp_path / "out.nii.gz")]) == 1
    error = capsys.readouterr().err.strip()
    assert os.strerror(code) in error and len(error.splitlines()) == 1
    assert os.listdir(tmp_path) == ["in.nii.gz"]
