"""``nnunet-din enhance``."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_din.commands.main import main
from nnunet_din.enhancement import enhance, enhance_slices


def volume(shape=(4, 20, 24)):
    return np.random.default_rng(0).gamma(4, 50, size=shape).astype(np.float32)


def write(array, path, spacing=None, color=False):
    image = sitk.GetImageFromArray(array, isVector=color)
    if spacing:
        image.SetSpacing(spacing)
        image.SetOrigin((1.0, 2.0, 3.0))
    sitk.WriteImage(image, str(path))


def test_enhance_a_volume_with_picture(tmp_path, capsys):
    data = volume()
    write(data, tmp_path / "in.nii.gz", spacing=(1.5, 1.5, 8.0))
    assert main(["enhance", str(tmp_path / "in.nii.gz"), str(tmp_path / "new" / "out.nii.gz"), "--png"]) == 0
    result = sitk.ReadImage(str(tmp_path / "new" / "out.nii.gz"))
    np.testing.assert_allclose(sitk.GetArrayFromImage(result), enhance_slices(data[None])[0], atol=1e-6)
    assert result.GetSpacing() == pytest.approx((1.5, 1.5, 8.0)) and result.GetOrigin() == pytest.approx((1, 2, 3))
    assert (tmp_path / "new" / "out.png").stat().st_size > 1000
    assert "out.png" in capsys.readouterr().out


def test_enhance_slices_along_the_largest_spacing_or_the_given_axis(tmp_path):
    data = volume()
    write(data, tmp_path / "in.nii.gz", spacing=(9.0, 1.0, 1.0))
    for flags, axis in ((), 2), (("--axis", "1"), 1):
        assert main(["enhance", str(tmp_path / "in.nii.gz"), str(tmp_path / "out.nii.gz"), *flags]) == 0
        expected = np.moveaxis(enhance_slices(np.moveaxis(data, axis, 0)[None])[0], 0, axis)
        np.testing.assert_allclose(
            sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.nii.gz"))), expected, atol=1e-6
        )


def test_enhance_a_volume_as_a_whole(tmp_path, capsys):
    data = volume()
    write(data, tmp_path / "in.nii.gz")
    source, target = str(tmp_path / "in.nii.gz"), str(tmp_path / "out.nii.gz")
    assert main(["enhance", source, target, "--volumetric"]) == 0
    expected = enhance(data[None].astype(np.float32), volumetric=True)[0]
    np.testing.assert_allclose(sitk.GetArrayFromImage(sitk.ReadImage(target)), expected, atol=1e-6)
    assert np.abs(expected - enhance_slices(data[None])[0]).max() > 0.1
    assert main(["enhance", source, target, "--volumetric", "--method", "he"]) == 1
    assert "works slice by slice only" in capsys.readouterr().err


def test_enhance_a_color_image(tmp_path):
    data = np.random.default_rng(0).integers(0, 255, size=(20, 24, 3)).astype(np.uint8)
    write(data, tmp_path / "in.png", color=True)
    assert main(["enhance", str(tmp_path / "in.png"), str(tmp_path / "out.nii.gz")]) == 0
    result = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.nii.gz")))
    expected = enhance_slices(np.moveaxis(data, -1, 0)[:, None].astype(np.float32), color=True)[:, 0]
    np.testing.assert_allclose(result, np.moveaxis(expected, 0, -1), atol=1e-6)


@pytest.mark.parametrize("case", ["missing", "no image", "unwritable format"])
def test_enhance_errors_are_one_sentence(case, tmp_path, capsys):
    source, target = tmp_path / "in.nii.gz", tmp_path / "out.nii.gz"
    if case == "no image":
        source = tmp_path / "in.txt"
        source.write_text("hello")
    elif case == "unwritable format":
        write(volume(), source)
        target = tmp_path / "out.unknown"
    assert main(["enhance", str(source), str(target)]) == 1
    expected = {"missing": "no such file", "no image": "cannot read this as an image", "unwritable format": ".nii.gz"}
    error = capsys.readouterr().err
    assert expected[case] in error and "Traceback" not in error


def test_unknown_method_is_refused_by_the_parser(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["enhance", "a", "b", "--method", "magic"])
    assert "fuzzy" in capsys.readouterr().err
