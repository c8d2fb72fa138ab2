"""``nnunet-din doctor`` and ``nnunet-din enhance``."""

from __future__ import annotations

import importlib
import json
import re

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_din.commands import doctor
from nnunet_din.commands.main import main
from nnunet_din.enhancement import enhance_slices
from nnunet_din.plugin import CLASSES


@pytest.fixture
def folders(tmp_path, monkeypatch):
    for name in doctor.FOLDERS:
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


@pytest.fixture
def no_worker(monkeypatch):
    """Leave out the slow look-up in a spawned worker."""
    monkeypatch.setattr(doctor, "modules_found_by_a_worker", doctor.modules_found_here)


# ---- doctor ----


@pytest.mark.slow
def test_doctor_finds_everything_here_and_in_a_spawned_worker(folders, capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check for check in report["checks"]}
    assert report["healthy"] is True
    n = len(CLASSES)
    for where in ("names in this process", "names in a spawned worker"):
        assert checks[where]["found"] == f"{n} of {n} classes found"
    assert "other classes and channels" in checks["-pretrained_weights"]["found"]
    assert {"python", "torch", "nnunetv2", "timm", "device", "memory", *doctor.FOLDERS} <= checks.keys()


def test_doctor_sees_that_fine_tuning_is_not_ours(folders, no_worker, monkeypatch, capsys):
    module = importlib.import_module(doctor.WEIGHTS_MODULE)
    monkeypatch.setattr(module, doctor.WEIGHTS_FUNCTION, lambda *args: None)
    assert main(["doctor"]) == 1
    assert re.search(r"WRONG +-pretrained_weights +is nnU-Net's own alone", capsys.readouterr().out)


def test_doctor_says_what_to_do_about_folders(folders, no_worker, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_raw")
    monkeypatch.setenv("nnUNet_results", str(folders / "nowhere"))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "do this: export nnUNet_raw=/path/to/nnUNet_raw" in out
    assert f"do this: mkdir -p {folders / 'nowhere'}" in out
    assert "Something is wrong" in out


@pytest.mark.parametrize(("version", "ok"), [("2.6.2", False), ("2.7.0", True), ("2.8.1", True), ("2.9.0", False)])
def test_doctor_knows_the_supported_nnunet(version, ok, monkeypatch):
    real = doctor.metadata.version
    monkeypatch.setattr(doctor.metadata, "version", lambda name: version if name == "nnunetv2" else real(name))
    check = next(c for c in doctor._versions() if c.name == "nnunetv2")
    assert check.ok is ok and check.do == ("" if ok else 'pip install "nnunetv2>=2.7,<2.9"')


def test_doctor_reports_a_missing_package(monkeypatch):
    def version(name):
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    assert [(c.name, c.ok, c.do) for c in doctor._versions()][1] == ("torch", False, "pip install torch")


@pytest.mark.parametrize("failure", ["not found", "raises"])
def test_doctor_reports_a_worker_without_the_plugin(failure, folders, monkeypatch, capsys):
    def look_up():
        if failure == "raises":
            raise RuntimeError("ImportError: broken")
        return dict.fromkeys(CLASSES)

    monkeypatch.setattr(doctor, "modules_found_by_a_worker", look_up)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert ("RuntimeError: ImportError: broken" if failure == "raises" else f"0 of {len(CLASSES)} classes found") in out
    assert "pip install --force-reinstall --no-deps nnunet-din" in out


# ---- enhance ----


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
