"""``nnunet-din doctor``: each fault has its line, and a sound environment none."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import re
import shutil
import sys
from collections import namedtuple
from dataclasses import replace
from functools import partial

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_dataset import SMALL_NETWORK
from nnunet_din.commands.main import main
from nnunet_din.cost import training_step
from nnunet_din.cost.training_step import CompilationError, Outcome, plan_trial, try_training
from nnunet_din.diagnosis import installation, machine, training
from nnunet_din.diagnosis.dataset import dataset_checks
from nnunet_din.network.encoders import ENCODERS
from nnunet_din.network.encoders.plain import WIDTHS, PlainEncoder
from nnunet_din.plugin import CLASSES

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture
def folders(tmp_path, monkeypatch):
    for name in machine.FOLDERS:
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


@pytest.fixture
def no_worker(monkeypatch):
    """Leave out the slow look-up in a spawned worker."""
    monkeypatch.setattr(installation, "modules_found_by_a_worker", installation.modules_found_here)


@pytest.mark.slow
def test_finds_everything_here_and_in_a_spawned_worker(folders, capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check for check in report["checks"]}
    assert report["healthy"] is True
    n = len(CLASSES)
    for where in ("names in this process", "names in a spawned worker"):
        assert checks[where]["found"] == f"{n} of {n} classes found"
    assert "other classes and channels" in checks["-pretrained_weights"]["found"]
    assert {"python", *installation.PACKAGES, "device", "workers", "memory", *machine.FOLDERS} <= checks.keys()


# ---- packages and the plug-in ----


def test_fine_tuning_is_not_ours(folders, no_worker, monkeypatch, capsys):
    module = importlib.import_module(installation.WEIGHTS_MODULE)
    monkeypatch.setattr(module, installation.WEIGHTS_FUNCTION, lambda *args: None)
    assert main(["doctor"]) == 1
    assert re.search(r"WRONG +-pretrained_weights +is nnU-Net's own alone", capsys.readouterr().out)


@pytest.mark.parametrize(("version", "ok"), [("2.6.2", False), ("2.7.0", True), ("2.8.1", True), ("2.9.0", False)])
def test_the_supported_nnunet(version, ok, monkeypatch):
    real = installation.metadata.version
    monkeypatch.setattr(installation.metadata, "version", lambda name: version if name == "nnunetv2" else real(name))
    check = next(c for c in installation.versions() if c.name == "nnunetv2")
    assert check.ok is ok and check.do == ("" if ok else 'pip install "nnunetv2>=2.7,<2.9"')


def test_a_missing_package(monkeypatch):
    def version(name):
        raise installation.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(installation.metadata, "version", version)
    assert [(c.name, c.ok, c.do) for c in installation.versions()][1] == ("torch", False, "pip install torch")


def test_torch_of_the_cpu_beside_torchvision_of_cuda(monkeypatch):
    """Whether torchvision still loads, or not."""
    import torchvision

    monkeypatch.setattr(torchvision, "__version__", "0.29.1+cu130")
    monkeypatch.setattr(torch, "__version__", "2.14.1+cpu")
    real = installation.metadata.version
    monkeypatch.setattr(installation.metadata, "version", lambda name: "2.14.1+cpu" if name == "torch" else real(name))
    check = next(c for c in installation.versions() if c.name == "torchvision")
    assert not check.ok and check.found == "0.29.1+cu130 was built for another torch than 2.14.1+cpu"
    assert "pip install --force-reinstall torch torchvision --index-url https://" in check.do
    assert "download.pytorch.org/whl/cpu:" in check.do
    monkeypatch.setitem(importlib.sys.modules, "torchvision", None)  # its import fails
    check = next(c for c in installation.versions() if c.name == "torchvision")
    assert not check.ok and "but the import fails" in check.found and "whl/cpu" in check.do


@pytest.mark.parametrize("failure", ["not found", "raises"])
def test_a_worker_without_the_plugin(failure, folders, monkeypatch, capsys):
    def look_up():
        if failure == "raises":
            raise RuntimeError("ImportError: broken")
        return dict.fromkeys(CLASSES)

    monkeypatch.setattr(installation, "modules_found_by_a_worker", look_up)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert ("RuntimeError: ImportError: broken" if failure == "raises" else f"0 of {len(CLASSES)} classes found") in out
    assert "pip install --force-reinstall --no-deps nnunet-din" in out


def test_what_compilation_lacks(monkeypatch, tmp_path):
    monkeypatch.delenv("nnUNet_compile", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    monkeypatch.setattr(installation, "find_spec", lambda name: None)
    monkeypatch.setattr(installation, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(installation.shutil, "which", lambda name: None)
    check = installation.compilation(GPU)
    assert not check.ok and "nnUNet_compile to f" in check.do
    assert all(word in check.found for word in ("C compiler", "headers", "triton"))
    monkeypatch.undo()
    monkeypatch.delenv("nnUNet_compile", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    for name, value in (("find_spec", lambda name: True), ("get_path", lambda name: str(tmp_path))):
        monkeypatch.setattr(installation, name, value)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(installation.shutil, "which", lambda name: "/usr/bin/cc")
    assert "this GPU has 6.1" in installation.compilation(GPU).found
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert installation.compilation(GPU).ok
    monkeypatch.setenv("nnUNet_compile", "f")
    assert "switches it off" in installation.compilation(GPU).found
    assert "compiles nothing on cpu" in installation.compilation(CPU).found


# ---- the machine ----


def test_folders_that_are_missing(folders, no_worker, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_raw")
    monkeypatch.setenv("nnUNet_results", str(folders / "nowhere"))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "do this: set nnUNet_raw to the path of a folder" in out
    assert f"do this: make the folder {folders / 'nowhere'}" in out
    assert "Something is wrong" in out


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("nnUNet_n_proc_DA", "0", "set_num_threads expects a positive integer"),
        ("nnUNet_n_proc_DA", "many", "nnUNet_n_proc_DA is 'many'"),
        ("nnUNet_def_n_proc", "0", "nnUNet_def_n_proc is '0'"),
    ],
)
def test_numbers_of_workers(variable, value, words, monkeypatch):
    assert machine.workers().ok
    monkeypatch.setenv(variable, value)
    check = machine.workers()
    assert not check.ok and words in check.found and variable in check.do


@pytest.mark.parametrize(("free", "workers", "ok"), [(4.0, "1", True), (4.0, "8", False), (8.0, "8", True)])
def test_main_memory_for_the_workers(free, workers, ok, monkeypatch):
    monkeypatch.setenv("nnUNet_def_n_proc", workers)
    monkeypatch.setattr(machine.Path, "read_text", lambda path, **_: f"MemAvailable: {free * 1e9 / 1024:.0f} kB\n")
    check = machine.memory()
    assert check.ok is ok and check.found.startswith(f"{free:.1f} GB free; {workers} workers")


def test_shared_memory_of_a_container(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total")
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(64 * 2**20))
    check = machine.shared_memory()
    assert not check.ok and "0.0671 GB" in check.found and "--ipc=host" in check.do
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(16 * 2**30))
    assert machine.shared_memory().ok


# ---- a data set ----


def write_image(path, shape=(2, 4, 4), vector=False):
    """Write an empty image; four axes are four, or three and the numbers of a voxel."""
    array = np.zeros(shape, np.uint8)
    volume = sitk.GetImageFromArray(array, isVector=vector)
    if len(shape) == 4 and not vector:
        volume = sitk.JoinSeries([sitk.GetImageFromArray(part) for part in array])
    sitk.WriteImage(volume, str(path))


@pytest.fixture
def raw(folders):
    """Five cases of two channels."""
    raw = folders / "nnUNet_raw" / "Dataset901_Test"
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    description = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "one": 1}}
    (raw / "dataset.json").write_text(json.dumps(description))
    for case in range(5):
        for channel in range(2):
            write_image(raw / "imagesTr" / f"case_{case}_{channel:04d}.nii.gz")
        write_image(raw / "labelsTr" / f"case_{case}.nii.gz")
    return raw


def describe(raw, **changes):
    """Change the description of a data set."""
    description = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**description, **changes}))


def the_fault():
    """The one check of the data set that fails."""
    (check,) = (check for check in dataset_checks("901") if not check.ok)
    assert check.do
    return check


def test_a_sound_data_set(raw):
    checks = {check.name: check for check in dataset_checks("901")}
    assert all(check.ok for check in checks.values()), checks
    assert list(checks) == ["labels", "cases", "files", "channels", "label maps", "plans"]
    assert checks["channels"].found == "2 in every case" and checks["cases"].found.startswith("5 for training")


def test_fewer_cases_than_folds(raw, folders):
    for path in raw.glob("*/case_4*"):
        path.unlink()
    check = the_fault()
    assert check.found.startswith("4 for training") and "nnUNetv2_train 901 2d all" in check.do
    (folders / "nnUNet_preprocessed" / raw.name).mkdir()
    splits = [{"train": ["case_0", "case_1"], "val": ["case_2", "case_3"]}]
    (folders / "nnUNet_preprocessed" / raw.name / "splits_final.json").write_text(json.dumps(splits))
    assert all(check.ok for check in dataset_checks("901"))


@pytest.mark.parametrize("folder", ["nnUNet_raw", "nnUNet_preprocessed"])
@pytest.mark.parametrize(
    ("splits", "words"),
    [
        ([{"train": ["case_0", "case_9"], "val": ["case_1"]}], "fold 0 has case_9 under `train`"),
        ([{"train": ["case_0.nii.gz"], "val": ["case_1.nii.gz"]}], "fold 0 has case_0.nii.gz under `train`"),
        (
            [{"train": ["case_0"], "val": ["case_1"]}, {"train": ["case_1"], "val": []}],
            "fold 1 has no cases under `val`",
        ),
        ([], "there are no folds"),
        ([{"train": ["case_0", "case_1"], "val": ["case_1"]}], "fold 0 has case_1 under `train` and under `val`"),
        ({"train": ["case_0"], "val": ["case_1"]}, "must be a list of objects with `train` and `val`"),
        ([{"train": ["case_0"]}], "must be a list of objects with `train` and `val`"),
    ],
)
def test_folds_that_cannot_be_trained_on(splits, words, folder, raw, folders):
    """Written by hand, in the raw data from where planning copies them, or where a training looks for them."""
    path = folders / folder / raw.name / "splits_final.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(splits))
    check = the_fault()
    assert check.name == "cases" and words in check.found and str(path) in check.do


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"background": 0, "a": 1, "b": 3}, "consecutive, 0, 1, 2 and so on, each once, and they are 0, 1, 3"),
        ({"a": 0, "b": 1}, "`background`"),
        ({"background": 0}, "a class besides the background"),
        ({"background": 0, "a": []}, "each with numbers"),
    ],
)
def test_labels_that_cannot_be_trained_on(labels, words, raw):
    describe(raw, labels=labels)
    check = the_fault()
    assert check.name == "labels" and words in check.found


@pytest.mark.parametrize("fault", ["a file too few", "4-D", "colours"])
def test_mixed_numbers_of_channels(fault, raw):
    file = raw / "imagesTr" / "case_3_0001.nii.gz"
    if fault == "a file too few":
        file.unlink()
    else:
        write_image(file, (2, 2, 4, 4) if fault == "4-D" else (2, 4, 4, 3), vector=fault == "colours")
    number = {"a file too few": 1, "4-D": 3, "colours": 4}[fault]
    assert f"1 of 5 cases do not have the 2 of dataset.json; the first is case_3 with {number}" in the_fault().found


@pytest.mark.parametrize(("shape", "vector"), [((2, 2, 4, 4), False), ((2, 4, 4, 2), True)], ids=["4-D", "vectors"])
def test_channels_in_one_volume(shape, vector, raw):
    """As many as there should be: nnU-Net reads 4-D files, trains, and cannot write what it predicts for them."""
    write_image(raw / "imagesTr" / "case_3_0000.nii.gz", shape, vector)
    (raw / "imagesTr" / "case_3_0001.nii.gz").unlink()
    check = the_fault()
    assert check.name == "channels" and "case_3_0000.nii.gz, a file of several volumes or of vectors" in check.found


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("missing", "case_3.nii.gz, which does not exist"),
        ("another size", "case_3.nii.gz has 2 x 4 x 5 voxels, and the image has 2 x 4 x 4"),
        ("4-D", "case_3.nii.gz has 2 numbers a voxel"),
        ("colours", "case_3.nii.gz has 3 numbers a voxel"),
        ("damaged", "case_3.nii.gz is no NIfTI file, in spite of its name"),
        ("no spacing", "case_3.nii.gz has the spacing 0 x 1 x 1 in its header"),
    ],
)
def test_label_maps_that_do_not_fit(fault, words, raw):
    file = raw / "labelsTr" / "case_3.nii.gz"
    file.unlink()
    if fault == "damaged":
        file.touch()
    elif fault == "no spacing":
        header = nibabel.Nifti1Header()
        header.set_data_shape((4, 4, 2))
        header["pixdim"][1] = 0
        file.write_bytes(gzip.compress(header.binaryblock))
    elif fault != "missing":
        shape = {"another size": (2, 4, 5), "4-D": (2, 2, 4, 4), "colours": (2, 4, 4, 3)}[fault]
        write_image(file, shape, vector=fault == "colours")
    check = the_fault()
    assert check.name == "label maps" and words in check.found
    assert check.found.startswith("1 of 5 cases have none that fits; the first is case_3: ")


def test_pictures(raw):
    """Colours in one file are channels, and JPEG is no format for labels."""
    from skimage import io

    def write(ending, colors=3):
        for folder in ("imagesTr", "labelsTr"):
            shutil.rmtree(raw / folder)
            (raw / folder).mkdir()
        for case in range(5):
            image, label = np.zeros((8, 9, colors), np.uint8), np.zeros((8, 9), np.uint8)
            io.imsave(raw / "imagesTr" / f"case_{case}_0000{ending}", image, check_contrast=False)
            io.imsave(raw / "labelsTr" / f"case_{case}{ending}", label, check_contrast=False)
        describe(raw, channel_names=dict(enumerate("RGB")), file_ending=ending)

    write(".png")
    assert all(check.ok for check in dataset_checks("901"))
    (raw / "imagesTr" / "case_1_0000.png").replace(raw / "imagesTr" / "case_1_0000.jpg")
    found = {check.name: check.found for check in dataset_checks("901") if not check.ok}
    assert found.keys() == {"cases", "files"} and found["cases"].startswith("4 for training")
    assert found["files"] == "1 of 5 in imagesTr are not called CASE_0000.png, for example case_1_0000.jpg"
    write(".png", colors=4)
    assert "case_0 with 4 (case_0_0000.png)" in the_fault().found
    write(".jpg")
    found = {check.name: check.found for check in dataset_checks("901") if not check.ok}
    assert found["files"] == "nnU-Net has no label maps that end in .jpg, the `file_ending` in dataset.json"
    assert "case_0.jpg changes labels" in found["label maps"]


def test_volumes_that_simpleitk_does_not_read(raw, monkeypatch, capsys):
    """They are opened by nnU-Net's reader, whose remarks would not be JSON."""
    import tifffile

    for folder in ("imagesTr", "labelsTr"):
        shutil.rmtree(raw / folder)
        (raw / folder).mkdir()
    describe(raw, channel_names={"0": "CT"}, file_ending=".tif")
    for case in range(5):
        for name in (f"imagesTr/case_{case}_0000.tif", f"labelsTr/case_{case}.tif"):
            tifffile.imwrite(raw / name, np.zeros((5, 8, 9), np.uint8))

    def fail(self):
        raise RuntimeError

    monkeypatch.setattr(sitk.ImageFileReader, "ReadImageInformation", fail)
    assert all(check.ok for check in dataset_checks("901"))
    tifffile.imwrite(raw / "labelsTr" / "case_2.tif", np.zeros((5, 8, 8), np.uint8))
    assert "case_2.tif has 5 x 8 x 8 voxels, and the image has 5 x 8 x 9" in the_fault().found
    assert not capsys.readouterr().out


def test_files_that_dataset_json_names(raw):
    """By any name, also in other folders; every case has an entry."""
    (raw / "imagesTr").rename(raw / "scans")
    (raw / "labelsTr").rename(raw / "truth")
    cases = {
        f"case_{case}": {
            "images": [f"scans/case_{case}_{channel:04d}.nii.gz" for channel in range(2)],
            "label": f"truth/case_{case}.nii.gz",
        }
        for case in range(5)
    }
    describe(raw, dataset=cases)
    assert all(check.ok for check in dataset_checks("901"))
    cases["case_0"]["images"][0] = "scans/nothing.nii.gz"
    describe(raw, dataset=cases)
    assert "case_0 with " in the_fault().found and "nothing.nii.gz, which does not exist" in the_fault().found
    describe(raw, dataset={"case_0": ["scans/case_0_0000.nii.gz"]})
    assert "`dataset` in dataset.json must give each case `images`" in the_fault().found


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode elsewhere")
def test_file_names_that_are_not_utf8(raw):
    (raw / "labelsTr" / "case_3.nii.gz").unlink()
    for channel in range(2):
        file = raw / "imagesTr" / f"case_3_{channel:04d}.nii.gz"
        file.rename(file.with_name(f"{os.fsdecode(b'M' + bytes([252]))}_{channel:04d}.nii.gz"))
    faults = [check.found for check in dataset_checks("901") if not check.ok]
    assert len(faults) == 2 and all("M\\xfc" in found and "not UTF-8" in found for found in faults)
    assert "".join(faults).encode()


def test_plans_of_another_name(raw, folders, no_worker, capsys):
    plans = folders / "nnUNet_preprocessed" / raw.name / "nnUNetDINFastPlans.json"
    plans.parent.mkdir()
    plans.write_text("{}")
    assert main(["doctor", "-d", "901", "-p", "nnUNetPlans"]) == 1
    assert "name one of these with -p: nnUNetDINFastPlans" in capsys.readouterr().out
    assert next(c for c in dataset_checks("901", plans.stem) if c.name == "plans").ok


def test_a_data_set_that_is_not_there(folders):
    (check,) = dataset_checks("77")
    assert not check.ok and "No data set Dataset077_*" in check.found


# ---- a training step ----

GOOD = Outcome(
    first_seconds=9.0,
    seconds=[0.2, 0.1, 0.3],
    losses=[1.0, 0.9, 0.8],
    gradient_norms=[1.0, 1.0, 1.0],
    scale=1.0,
    peak_memory_bytes=300_000_000,
    difference=0.01,
    rounding=0.01,
)


def step_checks(monkeypatch, outcome, **arguments):
    """The checks of a trial with this outcome, or this error, by name."""
    trial = training.Trial("fast", CPU, (32, 32), 2, 300_000_000)

    def attempt(trial, compiled):
        if isinstance(outcome, CompilationError) and not compiled:
            return GOOD
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(training, "plan_trial", lambda *args: trial)
    monkeypatch.setattr(training, "try_training", attempt)
    monkeypatch.setattr(training, "compiles", lambda device: True)
    return {check.name: check for check in training.training_checks("fast", "cpu", **arguments)}


def test_a_step_that_is_right(monkeypatch):
    checks = step_checks(monkeypatch, GOOD)
    assert all(check.ok for check in checks.values()) and len(checks) == 6
    assert checks["time of a step"].found == "0.2 s (0.1 to 0.3), 10 images a second; the first step 9 s"


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"losses": [1.0, float("nan"), 1.0]}, "loss", "1, nan, 1"),
        ({"gradient_norms": [1.0, float("inf"), 1.0], "scale": 32.0}, "norm of the gradients", "inf, 1, scaled by 32"),
        ({"peak_memory_bytes": 360_000_000}, "memory of the step", "0.36 GB at the peak, 0.30 GB counted"),
        ({"difference": 0.05}, "compiled", "5 % of the largest"),
        ({"difference": float("inf")}, "compiled", "inf %"),
    ],
)
def test_what_can_be_wrong_with_a_step(change, name, words, monkeypatch):
    checks = step_checks(monkeypatch, replace(GOOD, **change))
    wrong = [check for check in checks.values() if not check.ok]
    assert [check.name for check in wrong] == [name] and words in wrong[0].found and wrong[0].do


def test_a_step_that_does_not_compile_is_made_without(monkeypatch):
    checks = step_checks(monkeypatch, CompilationError("InductorError: no compiler"))
    assert [check.name for check in checks.values() if not check.ok] == ["compiled"]
    assert "nnUNet_compile to f" in checks["compiled"].do and checks["loss"].ok


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "memory of the step"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), "memory of the step"),
        (RuntimeError("CUDA error: an illegal memory access"), "steps"),
    ],
)
def test_a_step_that_fails(error, name, monkeypatch):
    checks = step_checks(monkeypatch, error)
    assert [check.name for check in checks.values() if not check.ok] == [name] and str(error) in checks[name].found


@pytest.mark.parametrize("device", ["nope", "cuda:7"])
def test_a_device_that_is_not_there(device, monkeypatch):
    if torch.cuda.device_count() > 7:
        pytest.skip("eight GPUs")
    (check,) = training.training_checks("fast", device)
    assert not check.ok and check.found.startswith(f"{device} cannot be used: ") and "--device cpu" in check.do


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "2"], "--batch is about the training step: add --step"),
        (["--step", "--batch", "0"], "--batch must be at least 1"),
        (["--step", "--size", "0", "8"], "--size must be at least 1 x 1"),
        (["--step", "--memory", "-1"], "--memory must be above 0"),
        (["-p", "nnUNetPlans"], "give the data set, too, with -d"),
    ],
)
def test_arguments_that_are_refused(arguments, message, capsys):
    assert main(["doctor", *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.fixture
def tiny_preset(monkeypatch):
    """A network that has every part in place of the preset ``fast``."""
    monkeypatch.setitem(WIDTHS, "plain_tiniest", (8, 8, 16, 16))
    monkeypatch.setitem(ENCODERS, "plain_tiniest", PlainEncoder)
    options = {**SMALL_NETWORK, "encoder": "plain_tiniest", "decoder_channels": 8, "fused_stages": 2}
    monkeypatch.setitem(training_step.PRESETS, "fast", options)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_a_real_step(compiled, tiny_preset, monkeypatch):
    """Fails if the step is not finite, over its counted memory, or if the graph computes something else."""
    monkeypatch.setattr(training, "compiles", lambda device: compiled)
    size, batch = (32, 32), 8
    if not compiled:  # convolutions of few channels need more memory than is counted
        monkeypatch.setitem(training_step.PRESETS, "fast", SMALL_NETWORK)
        size, batch = (64, 64), 2
    # All of compilation but the machine code, which takes minutes; it holds more than the code would.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    checks = {check.name: check for check in training.training_checks("fast", "cpu", size=size, batch=batch)}
    names = checks.keys() - ({"memory of the step"} if compiled else set())
    assert all(checks[name].ok for name in names), checks
    assert ("differ from eager ones by" in checks["compiled"].found) == compiled


@pytest.mark.slow
def test_batch_planned_for_a_memory_is_the_largest(tiny_preset):
    largest = plan_trial("fast", CPU, (32, 32), memory_gb=0.01)
    assert largest.batch > 2
    more = plan_trial("fast", CPU, (32, 32), batch=largest.batch + 1)
    assert 1.15 * largest.counted_bytes <= 0.01e9 < 1.15 * more.counted_bytes
    assert plan_trial("fast", CPU, (32, 32), memory_gb=1e-6).batch == 2


def test_a_compiler_that_fails(tiny_preset, monkeypatch):
    class Fails(torch.nn.Module):
        def forward(self, x):
            raise ImportError("no triton\nand more")

    monkeypatch.setattr(torch, "compile", lambda network: Fails())
    with pytest.raises(CompilationError, match="^ImportError: no triton$"):
        try_training(training.Trial("fast", CPU, (16, 16), 1, 0), compiled=True)
