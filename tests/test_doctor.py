"""``nnunet-din doctor``: each fault has its line, and a sound environment none."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from functools import partial

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_dataset import SMALL_NETWORK
from nnunet_din.commands.main import main
from nnunet_din.diagnosis import installation, machine, training
from nnunet_din.diagnosis.dataset import dataset_checks
from nnunet_din.network import PRESETS
from nnunet_din.network.encoders import ENCODERS
from nnunet_din.network.encoders.plain import WIDTHS, PlainEncoder
from nnunet_din.plugin import CLASSES

CPU = torch.device("cpu")


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """nnU-Net's three folders, and no slow look-up in a spawned worker."""
    for name in machine.FOLDERS:
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr(installation, "modules_found_by_a_worker", installation.modules_found_here)
    return tmp_path


def test_help_is_quick():
    """Fails if the parser loads torch."""
    code = "import sys, nnunet_din.commands.main as m; m.build_parser(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_finds_everything_here_and_in_a_spawned_worker(folders, monkeypatch, capsys):
    monkeypatch.undo()
    for name in machine.FOLDERS:
        monkeypatch.setenv(name, str(folders / name))
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check for check in report["checks"]}
    assert report["healthy"] is True
    for where in ("names in this process", "names in a spawned worker"):
        assert checks[where]["found"] == f"{len(CLASSES)} of {len(CLASSES)} classes found"
    assert "other classes and channels" in checks["-pretrained_weights"]["found"]


# ---- packages and the plug-in ----


def test_fine_tuning_is_not_ours(folders, monkeypatch, capsys):
    module = importlib.import_module(installation.WEIGHTS_MODULE)
    monkeypatch.setattr(module, installation.WEIGHTS_FUNCTION, lambda *args: None)
    assert main(["doctor"]) == 1
    assert re.search(r"WRONG +-pretrained_weights +is nnU-Net's own alone", capsys.readouterr().out)


@pytest.mark.parametrize(("version", "ok"), [("2.6.2", False), ("2.8.1", True), ("2.9.0", False)])
def test_the_supported_nnunet(version, ok, monkeypatch):
    real = installation.metadata.version
    monkeypatch.setattr(installation.metadata, "version", lambda name: version if name == "nnunetv2" else real(name))
    check = next(c for c in installation.versions() if c.name == "nnunetv2")
    assert check.ok is ok and check.do == ("" if ok else 'pip install "nnunetv2>=2.7,<2.9"')


def test_packages_that_are_missing_or_broken(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # its import fails, as where torch is of another build
    check = next(c for c in installation.versions() if c.name == "torchvision")
    assert "but the import fails" in check.found and "whl/cpu" in check.do and not check.ok

    def version(name):
        raise installation.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(installation.metadata, "version", version)
    assert [(c.name, c.ok, c.do) for c in installation.versions()][1] == ("torch", False, "pip install torch")


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


# ---- the machine ----


def test_folders_that_are_missing(folders, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_raw")
    monkeypatch.setenv("nnUNet_results", str(folders / "nowhere"))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "do this: set nnUNet_raw to the path of a folder" in out
    assert f"do this: make the folder {folders / 'nowhere'}" in out
    assert "Something is wrong" in out


@pytest.mark.parametrize(
    ("value", "words"), [("0", "set_num_threads expects a positive integer"), ("many", "nnUNet_n_proc_DA is 'many'")]
)
def test_numbers_of_workers(value, words, monkeypatch):
    assert machine.workers().ok
    monkeypatch.setenv("nnUNet_n_proc_DA", value)
    check = machine.workers()
    assert not check.ok and words in check.found and "nnUNet_n_proc_DA" in check.do


@pytest.mark.parametrize(("free", "workers", "ok"), [(4.0, "1", True), (4.0, "8", False), (8.0, "8", True)])
def test_main_memory_for_the_workers(free, workers, ok, monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_def_n_proc", workers)
    monkeypatch.setattr(machine, "MEMORY", tmp_path / "meminfo")
    machine.MEMORY.write_text(f"MemTotal: 1 kB\nMemAvailable: {free * 1e9 / 1024:.0f} kB\n")
    check = machine.memory()
    assert check.ok is ok and check.found.startswith(f"{free:.1f} GB free; {workers} workers")


def test_shared_memory_of_a_container(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total")
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(64 * 2**20))
    check = machine.shared_memory()
    assert not check.ok and "0.0671 GB" in check.found and "--ipc=host" in check.do


# ---- a data set ----


@pytest.fixture
def raw(folders):
    """Five cases of two channels."""
    raw = folders / "nnUNet_raw" / "Dataset901_Test"
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    description = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "one": 1}}
    (raw / "dataset.json").write_text(json.dumps(description))
    volume = sitk.GetImageFromArray(np.zeros((2, 4, 4), np.uint8))
    for case in range(5):
        for channel in range(2):
            sitk.WriteImage(volume, str(raw / "imagesTr" / f"case_{case}_{channel:04d}.nii.gz"))
        sitk.WriteImage(volume, str(raw / "labelsTr" / f"case_{case}.nii.gz"))
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
    """Named by the files, or by dataset.json."""
    checks = {check.name: check for check in dataset_checks("901")}
    assert all(check.ok for check in checks.values()), checks
    assert list(checks) == ["labels", "cases", "files", "volumes", "plans"]
    assert checks["cases"].found.startswith("5 for training")
    (raw / "imagesTr").rename(raw / "scans")
    files = {f"case_{i}": {"images": [f"scans/case_{i}_0000.nii.gz"], "label": "x"} for i in range(6)}
    describe(raw, dataset=files)
    checks = {check.name: check for check in dataset_checks("901")}
    assert all(check.ok for check in checks.values()) and checks["cases"].found.startswith("6 for training")


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
        ([{"train": ["case_0.nii.gz"], "val": ["case_1"]}], "splits_final.json names case_0.nii.gz besides"),
        ({"train": ["case_0"], "val": ["case_1"]}, "must be a list of objects with `train` and `val`"),
    ],
)
def test_folds_that_cannot_be_trained_on(splits, words, folder, raw, folders):
    """Written by hand, in the raw data from where planning copies them, or where a training looks for them."""
    path = folders / folder / raw.name / "splits_final.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(splits))
    check = the_fault()
    assert words in check.found and str(path) in check.do + check.found


def test_labels_that_cannot_be_trained_on(raw):
    describe(raw, labels={"background": 0, "a": 1, "b": 3})
    check = the_fault()
    assert check.name == "labels" and "consecutive" in check.found


@pytest.mark.parametrize("kind", ["4-D", "vectors"])
def test_several_volumes_in_one_file(kind, raw):
    """As many channels as there should be: nnU-Net trains on them, and cannot write what it predicts."""
    volume = sitk.GetImageFromArray(np.zeros((2, 4, 4, 2), np.uint8), isVector=True)
    if kind == "4-D":
        volume = sitk.JoinSeries([sitk.GetImageFromArray(np.zeros((2, 4, 4), np.uint8))] * 2)
    sitk.WriteImage(volume, str(raw / "imagesTr" / "case_3_0000.nii.gz"))
    check = the_fault()
    assert check.name == "volumes" and check.found == "1 of 10 are 4-D, for example case_3_0000.nii.gz"


def test_pictures(raw):
    """Colours in one file are channels, and JPEG is no format for labels."""
    for path in raw.glob("*/*.nii.gz"):
        path.unlink()
    picture = sitk.GetImageFromArray(np.zeros((8, 9, 3), np.uint8), isVector=True)
    for case in range(5):
        sitk.WriteImage(picture, str(raw / "imagesTr" / f"case_{case}_0000.png"))
    describe(raw, channel_names=dict(enumerate("RGB")), file_ending=".png")
    assert all(check.ok for check in dataset_checks("901"))
    (raw / "imagesTr" / "case_1_0000.png").replace(raw / "imagesTr" / "case_1_0000.jpg")
    found = {check.name: check.found for check in dataset_checks("901") if not check.ok}
    assert found.keys() == {"cases", "files"} and found["cases"].startswith("4 for training")
    assert found["files"] == "1 of 5 in imagesTr are not called CASE_0000.png, for example case_1_0000.jpg"
    describe(raw, file_ending=".jpg")
    found = {check.name: check.found for check in dataset_checks("901") if not check.ok}
    assert found["files"] == "nnU-Net has no label maps that end in .jpg, the `file_ending` in dataset.json"


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode elsewhere")
def test_file_names_that_are_not_utf8(raw):
    for channel in range(2):
        file = raw / "imagesTr" / f"case_3_{channel:04d}.nii.gz"
        file.rename(file.with_name(f"{os.fsdecode(b'M' + bytes([252]))}_{channel:04d}.nii.gz"))
    (found,) = (check.found for check in dataset_checks("901") if not check.ok)
    assert "M\\xfc" in found and "not UTF-8" in found and found.encode()


def test_plans_of_another_name(raw, folders, capsys):
    plans = folders / "nnUNet_preprocessed" / raw.name / "nnUNetDINFastPlans.json"
    plans.parent.mkdir()
    plans.write_text("{}")
    assert main(["doctor", "-d", "901", "-p", "nnUNetPlans"]) == 1
    assert "there are nnUNetDINFastPlans" in capsys.readouterr().out
    assert next(c for c in dataset_checks("901", plans.stem) if c.name == "plans").ok


def test_a_data_set_that_is_not_there(folders):
    (check,) = dataset_checks("77")
    assert not check.ok and "No data set Dataset077_*" in check.found


# ---- a training step ----


@pytest.fixture
def tiny_preset(monkeypatch):
    """A network that has every part in place of the preset ``fast``."""
    monkeypatch.setitem(WIDTHS, "plain_tiniest", (8, 8, 16, 16))
    monkeypatch.setitem(ENCODERS, "plain_tiniest", PlainEncoder)
    options = {**SMALL_NETWORK, "encoder": "plain_tiniest", "decoder_channels": 8, "fused_stages": 2}
    monkeypatch.setitem(PRESETS, "fast", options)


def step_checks(monkeypatch, compiled=False, **arguments):
    """The checks of real steps, by name."""
    monkeypatch.setattr(training, "compiles", lambda device: compiled)
    arguments = {"size": (32, 32), "batch": 8, **arguments}
    return {check.name: check for check in training.training_checks("fast", "cpu", **arguments)}


def wrong(checks):
    """Names of those that fail; memory is left out: convolutions of few channels take more than is counted."""
    return [name for name, check in checks.items() if not check.ok and name != "memory of the step"]


def test_steps_that_are_right(tiny_preset, monkeypatch):
    checks = step_checks(monkeypatch)
    assert not wrong(checks) and {"time of a step", "memory of the step", "loss"} <= checks.keys()
    assert checks["training step"].found == "fast on cpu, 32 x 32, batch 8, in float32"
    monkeypatch.setattr(training, "MEMORY_MARGIN", 0.01)
    check = step_checks(monkeypatch)["memory of the step"]
    assert not check.ok and "GB counted" in check.found


def test_numbers_that_are_not_finite(tiny_preset, monkeypatch):
    monkeypatch.setattr(training.TrainingStep, "loss", lambda self, output: output[0].mean() * float("nan"))
    assert wrong(step_checks(monkeypatch)) == ["loss", "norm of the gradients"]


class Another(torch.nn.Module):
    """A compiled network that computes something else, or nothing."""

    def __init__(self, network, fails):
        super().__init__()
        self.network, self.fails = network, fails

    def forward(self, x):
        if self.fails:
            raise ImportError("no triton\nand more")
        return [output + 0.1 for output in self.network(x)]


@pytest.mark.parametrize(("fails", "words"), [(True, "ImportError: no triton"), (False, "differ from eager ones by")])
def test_a_compiler_that_fails_or_is_wrong(fails, words, tiny_preset, monkeypatch):
    """Without its result, the steps are made nevertheless."""
    monkeypatch.setattr(torch, "compile", lambda network: Another(network, fails))
    checks = step_checks(monkeypatch, compiled=True)
    assert wrong(checks) == ["compiled"] and checks["compiled"].found.startswith(
        ("outputs " if not fails else "") + words
    )
    assert "nnUNet_compile to f" in checks["compiled"].do and checks["loss"].ok


@pytest.mark.slow
def test_a_step_that_compiles(tiny_preset, monkeypatch):
    """All of compilation but the machine code, which takes minutes; fails if the graph computes something else."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    checks = step_checks(monkeypatch, compiled=True)
    assert not wrong(checks) and "differ from eager ones by" in checks["compiled"].found


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "memory of the step"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), "memory of the step"),
        (RuntimeError("CUDA error: an illegal memory access"), "steps"),
    ],
)
def test_a_step_that_fails(error, name, tiny_preset, monkeypatch):
    def fail(self):
        raise error

    monkeypatch.setattr(training.TrainingStep, "__call__", fail)
    (found,) = (check for check in step_checks(monkeypatch).values() if not check.ok)
    assert found.name == name and str(error) in found.found


@pytest.mark.parametrize("device", ["nope", "cuda:7"])
def test_a_device_that_is_not_there(device, monkeypatch):
    if torch.cuda.device_count() > 7:
        pytest.skip("eight GPUs")
    (check,) = training.training_checks("fast", device)
    assert not check.ok and check.found.startswith(f"{device} cannot be used: ") and "--device cpu" in check.do


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--batch 2", "--batch is about the training step: add --step"),
        ("-p nnUNetPlans", "give the data set, too, with -d"),
    ],
)
def test_arguments_that_are_refused(arguments, message, capsys):
    assert main(["doctor", *arguments.split()]) == 1
    assert message in capsys.readouterr().err
