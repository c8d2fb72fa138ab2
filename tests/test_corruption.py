"""Bad images: the same from the same seed, worse with severity, stored as the good ones, and only where they make
sense.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_din.commands.main import main
from nnunet_din.data import make_case
from nnunet_din.data.corruption import CORRUPTIONS, corrupt, corrupt_file, refusal, sensible_corruptions
from nnunet_din.data.images import Image, read_image

RANDOM = ("gaussian_noise", "rician_noise", "bias_field", "spikes", "ghosting", "motion")


@pytest.fixture(scope="module")
def phantom():
    case = make_case(0, size=32, slices=4)
    return Image(case.image[None], case.spacing, color=False)


@pytest.fixture
def files(tmp_path, phantom):
    """A volume of whole numbers with a place of its own, and an 8-bit picture in three colours."""
    volume = sitk.GetImageFromArray(np.rint(phantom.array[0]).astype(np.int16))
    volume.SetSpacing(phantom.spacing[::-1])
    volume.SetOrigin((3, -7, 11))
    volume.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    sitk.WriteImage(volume, str(tmp_path / "heart_0000.nii.gz"))
    grey = np.clip(phantom.array[0, 2] / 2, 0, 255).astype(np.uint8)
    picture = sitk.GetImageFromArray(np.stack([grey, grey // 2, grey], -1), isVector=True)
    sitk.WriteImage(picture, str(tmp_path / "skin_0000.png"))
    return tmp_path


def skip_without_torchio(name):
    if name in ("ghosting", "motion"):
        pytest.importorskip("torchio")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severities_are_worse_and_worse(name, phantom):
    """And none is an affine change of intensities, which a z-score would undo."""
    skip_without_torchio(name)
    errors = []
    for severity in range(1, 6):
        bad = corrupt(phantom, name, severity, seed=3)
        assert bad.dtype == phantom.array.dtype and bad.shape == phantom.array.shape and np.isfinite(bad).all()
        errors.append(np.sqrt(np.mean((bad - phantom.array) ** 2)))
        assert np.corrcoef(bad.ravel(), phantom.array.ravel())[0, 1] < 0.9995
    assert errors == sorted(errors) and errors[4] > 1.5 * errors[0] > 0


@pytest.mark.parametrize("name", RANDOM)
def test_the_seed_alone_decides(name, phantom):
    skip_without_torchio(name)
    first = corrupt(phantom, name, 2, seed=5)
    corrupt(phantom, name, 3, seed=6)
    np.testing.assert_array_equal(corrupt(phantom, name, 2, seed=5), first)
    assert (corrupt(phantom, name, 2, seed=6) != first).any()


def test_a_file_is_the_same_in_any_company(files):
    """Fails if what else was corrupted changes an image, or if names or studies share noise."""

    def written(name, seed=0, source="heart_0000.nii.gz"):
        corrupt_file(files / source, files / "out.nii.gz", name, 3, seed)
        return read_image(files / "out.nii.gz").array.astype(int)

    noise = written("rician_noise")
    written("spikes")
    np.testing.assert_array_equal(written("rician_noise"), noise)
    (files / "other_0000.nii.gz").write_bytes((files / "heart_0000.nii.gz").read_bytes())
    assert (written("rician_noise", seed=1) != noise).mean() > 0.5
    assert (written("rician_noise", source="other_0000.nii.gz") != noise).mean() > 0.5


def test_geometry_and_type_of_number_are_kept(files):
    corrupt_file(files / "heart_0000.nii.gz", files / "out.nii.gz", "gaussian_noise", 5)
    before, after = (sitk.ReadImage(str(files / name)) for name in ("heart_0000.nii.gz", "out.nii.gz"))
    assert after.GetPixelID() == before.GetPixelID() == sitk.sitkInt16
    for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(after, what)() == getattr(before, what)()


def test_colours_stay_eight_bits_and_belong_together(files):
    image = read_image(files / "skin_0000.png")
    for name in sensible_corruptions(ct=False, color=True):
        corrupt_file(files / "skin_0000.png", files / "out.png", name, 5)
        after = read_image(files / "out.png")
        assert after.array.dtype == np.uint8 and after.color and after.array.shape == image.array.shape
        same = (after.array[0] == after.array[2]).mean()
        assert same == 1 if name != "gaussian_noise" else same < 0.5, f"{name}: red and blue were equal"
    assert (corrupt(image, "gaussian_noise", 5, 0) == 0).any(), "cut at black, and no whole numbers wrapped"
    assert np.abs(corrupt(image, "gaussian_noise", 1, 0).astype(int) - image.array).max() < 64


def test_thick_slices_are_blurred_in_their_plane():
    array = np.ones((1, 5, 20, 20), np.float32)
    array[0, 2, 8:12, 8:12] = 100
    for spacing, leaks in (((10.0, 1.5, 1.5), False), ((1.5, 1.5, 1.5), True), ((1.0, 1.0, 10.0), True)):
        bad = corrupt(Image(array, spacing, color=False), "blur", 2, 0)
        assert (bad[0, 3, 8:12, 8:12].max() > 2) == leaks, spacing


def test_a_masked_background_stays_zero():
    array = np.random.default_rng(0).uniform(50, 100, (1, 8, 16, 16)).astype(np.float32)
    array[..., :8] = 0
    image = Image(array, (1.0, 1.0, 1.0), color=False)
    bad = corrupt(image, "rician_noise", 3, 0)
    assert (bad[..., :8] == 0).all() and (bad[..., 8:] != array[..., 8:]).all()
    array[..., 3:8] = 20
    assert (corrupt(image, "rician_noise", 3, 0)[..., :3] > 0).any(), "three of sixteen columns are no mask"


def test_noise_of_ct_is_in_hounsfield_units():
    array = np.full((1, 8, 32, 32), -1000, np.int16)
    array[..., 8:24] = 3000
    image = Image(array, (2.0, 1.0, 1.0), color=False)
    for severity, sigma in enumerate((20, 40, 80, 120, 160), start=1):
        noise = corrupt(image, "gaussian_noise", severity, 0, ct=True).astype(float) - array
        assert noise.std() == pytest.approx(sigma, rel=0.03)


def test_what_makes_no_sense_is_refused(phantom):
    assert sensible_corruptions(ct=True, color=False) == ["gaussian_noise", "blur", "low_resolution"]
    assert len(sensible_corruptions(ct=False, color=False)) == 8
    assert all(refusal(name, False, True) for name in ("rician_noise", "gibbs_ringing", "spikes", "motion"))
    colors = Image(np.zeros((3, 1, 8, 8), np.uint8), (np.inf, 1, 1), color=True)
    for image, name, severity, ct, message in (
        (phantom, "gamma_up", 1, True, "gamma_up makes no sense for CT"),
        (colors, "gibbs_ringing", 1, False, "gibbs_ringing makes no sense for colour pictures"),
        (phantom, "fog", 1, False, "no corruption 'fog'. Choose from gaussian_noise"),
        (phantom, "blur", 6, False, "1 to 5, not 6"),
    ):
        with pytest.raises(ValueError, match=message):
            corrupt(image, name, severity, 0, ct)


def test_torchio_is_asked_for_where_it_is_missing(phantom, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchio", None)
    with pytest.raises(ValueError, match=r"ghosting is a transform of TorchIO.*pip install 'nnunet-din\[robustness\]'"):
        corrupt(phantom, "ghosting", 1, 0)


def test_the_command_takes_files_and_folders(files, capsys):
    out = files / "bad"
    arguments = ["--corruption", "bias_field", "--severity", "4"]
    assert main(["corrupt", str(files), str(out), *arguments]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["heart_0000.nii.gz", "skin_0000.png"]
    assert main(["corrupt", str(files / "heart_0000.nii.gz"), str(files / "one.nii.gz"), *arguments]) == 0
    alone, in_folder = (read_image(path).array for path in (files / "one.nii.gz", out / "heart_0000.nii.gz"))
    np.testing.assert_array_equal(alone, in_folder)
    assert main(["corrupt", str(files), str(files), *arguments]) == 1
    assert "heart_0000.nii.gz would be overwritten" in capsys.readouterr().err
    (files / "empty").mkdir()
    assert main(["corrupt", str(files / "empty"), str(out), *arguments]) == 1
    assert "holds no image called CASE_0000.nii.gz" in capsys.readouterr().err


def test_the_spacing_of_a_tiff_volume_goes_along(tmp_path):
    """Fails if nnU-Net's reader of TIFF volumes finds no spacing beside the bad image."""
    volume = np.random.default_rng(0).integers(0, 255, (4, 12, 12)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(volume), str(tmp_path / "cells_0000.tif"))
    (tmp_path / "cells.json").write_text('{"spacing": [3, 1, 1]}')
    corrupt_file(tmp_path / "cells_0000.tif", tmp_path / "bad" / "cells_0000.tif", "blur", 1)
    assert (tmp_path / "bad" / "cells.json").read_text() == '{"spacing": [3, 1, 1]}'
