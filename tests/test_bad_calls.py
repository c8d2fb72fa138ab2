"""Whatever a user or a disk does wrong ends in one line on standard error, exit code 1 or 2, and no file.

Calls are those of a command that works, with one argument replaced by each of a kind of bad ones. A part of them is
quick; all are slow.
"""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_din.commands.main import main

DATASET, MODEL = "Dataset994_TestBadCalls", "nnUNetTrainerDIN__nnUNetDINAttoPlans__2d"
#: Names of bad files and folders in the fixture ``world``, by what a command expects there.
NO_IMAGE = ("missing", "folder", "empty", "text.nii.gz", "cut.nii.gz", "nan.nii.gz", "four.nii.gz", "file/image.nii.gz")
NO_FOLDER = ("missing", "file", "file/below", "emptyfolder")
NO_JSON = ("missing", "folder", "empty", "text.json", "latin.json", "number.json", "list.json", "null.json", "{}.json")
NO_PLANS = (*NO_JSON, "dataset.json", "nolist.json", "circle.json", "self.json", "orphan.json", "noarch.json")
NO_PICTURE = ("folder.png", "file/out.png", "out.txt", "out")
NO_OUTPUT = ("file", "file/below")
NO_COUNT = ("0", "-1", "x", "1.5", "")
#: A working call -> {place of an argument: what to put there instead}. Options follow as ("--option", values).
CALLS: dict[str, tuple[dict[int, tuple[str, ...]], dict[str, tuple[str, ...]]]] = {
    "enhance image.nii.gz out.nii.gz": (
        {1: NO_IMAGE, 2: ("folder.png", "file/out.nii.gz", "out", "out.unknown")},
        {
            "--method": ("magic", "", "zero_dce"),
            "--axis": ("3", "-1", "x"),
            "--weights": ("missing",),
            "-p": ("nnUNetDINAttoPlans",),
        },
    ),
    f"enhance image_0000.nii.gz out.nii.gz -d {DATASET} -p nnUNetDINAttoPlans": (
        {1: (*NO_IMAGE, "image.nii.gz"), 4: ("1", "DatasetX", "-5", "999999"), 6: ("no", "../x", "nnUNetListPlans")},
        {"-c": ("3d", ""), "--method": ("fuzzy",), "--axis": ("0",)},
    ),
    f"configure -d {DATASET} -p nnUNetDINAttoPlans --name other --set fusion=concat": (
        {
            2: ("1", "DatasetX", "x y"),
            4: ("no", "nnUNetListPlans", "nnUNetCirclePlans"),
            6: ("2d", ""),
            8: (
                "fusoin=concat",
                "fusion=magic",
                "fusion",
                "=concat",
                "inputs=[7]",
                "inputs=x",
                "decoder=[1]",
                "decoder_channels=0",
                "encoder=none",
                "versions=0",
                "fused_stages=9",
                "layer_scale=x",
            ),
        },
        {
            "--from": ("none", "other"),
            "--set-training": ("epochs=3", "num_epochs=0", "num_epochs=x"),
            "--enhancement": ("magic", "zero_dce"),
        },
    ),
    f"configure -d {DATASET} -p nnUNetHeirPlans --name parent --from child --set fusion=concat --force": (
        {},
        {"": ("",)},
    ),
    f"configure -d {DATASET} -p nnUNetHeirPlans --name 2d --set fusion=concat --force": ({}, {"": ("",)}),
    "profile plans.json 2d --count-only": (
        {1: NO_PLANS, 2: ("none", "", "bare")},
        {
            "--preset": ("fast", "none"),
            "--batch": NO_COUNT,
            "--channels": NO_COUNT,
            "--classes": NO_COUNT,
            "--repeats": NO_COUNT,
            "--size 64": NO_COUNT,
            "--size": ("64",),
        },
    ),
    "profile --preset atto --size 32 32 --device cpu": ({7: ("nope", "cuda:99", "", "cpu:x")}, {}),
    "figure --images images --pred m=predictions --gt truth -o out.png": (
        {
            2: NO_FOLDER,
            4: ("predictions", "=predictions", "m=missing", "m=file", "m=emptyfolder", "m="),
            6: NO_FOLDER,
            8: NO_PICTURE,
        },
        {
            "--plans": NO_PLANS,
            "--dataset-json": (*NO_JSON, "nolabels.json"),
            "--cases": ("none",),
            "--slice": ("99", "-1", "x"),
            "--channel": ("1", "-1", "x"),
            "--boxes": ("-1", "x"),
            "--axis": ("3",),
            "-f": ("0",),
        },
    ),
    f"figure -d {DATASET} --models {MODEL} -o out.png": (
        {2: ("1", "DatasetX"), 4: ("none", f"a={MODEL}x"), 6: NO_PICTURE},
        {"-f": ("7", "x"), "--cases": ("none",), "--channel": ("3",), "--gt": ("truth",)},
    ),
    f"curves -d {DATASET} -o out.png": (
        {2: ("1", "DatasetX"), 4: NO_PICTURE},
        {"--models": ("none",), "-f": ("7", "x"), "--against": ("x",)},
    ),
    "curves a=fold -o out.png": ({1: ("fold", "a=", "=fold", "a=missing", "a=file", "a=emptyfolder", "a=badfold")}, {}),
    "leaderboard --pred m=predictions --gt truth --dataset-json dataset.json -o board -np 1": (
        {
            2: (
                "predictions",
                "m=",
                "m=missing",
                "m=file",
                "m=emptyfolder",
                "m=cutmaps",
                "m=halfmaps",
                "m=othermaps",
                "m=movedmaps",
                "m=fourmaps",
                "m=smallmaps",
            ),
            4: (*NO_FOLDER, "cutmaps", "halfmaps"),
            6: (*NO_JSON, "nolabels.json", "wordlabels.json"),
            8: NO_OUTPUT,
        },
        {
            "--tolerance": ("0", "-1", "x", "none=2", "nan"),
            "--reference": ("none",),
            "--resamples": ("0", "99", "x"),
            "--group-by": ("(", "nothing"),
            "--models": ("x",),
            "-f": ("0",),
            "--pred": ("m=truth",),
        },
    ),
    f"leaderboard -d {DATASET} -o board -np 1": (
        {2: ("1", "DatasetX"), 4: NO_OUTPUT, 6: ("x",)},
        {"--models": ("none",), "-f": ("7", "x"), "--gt": ("truth",)},
    ),
    f"crossval -d {DATASET} -p nnUNetDINAttoPlans -c 2d --folds 0 --dry-run": (
        {
            2: ("1", "DatasetX"),
            4: ("no", "../x", "nnUNetListPlans", "nnUNetCirclePlans"),
            6: ("none", "bare x"),
            8: ("7", "x", "-1"),
        },
        {
            "-tr": ("none", "nnUNetPlannerDIN"),
            "--executor": ("magic",),
            "-device": ("tpu",),
            "--gpus": ("0 -device cpu", "0 --executor slurm"),
            "-num_gpus": ("0", "2 -device cpu", "2 --gpus 0"),
            "--retries": ("-1", "x"),
            "--test": ("images", "images missing", "file truth"),
            "--models": ("missing",),
        },
    ),
    f"crossval -d {DATASET} --dry-run --models text.json": (
        {5: (*NO_JSON, "dataset.json", "nolist.json", "cut.nii.gz")},
        {},
    ),
    f"status -d {DATASET} --models {MODEL}": ({2: ("1", "DatasetX"), 4: ("none",)}, {}),
    f"predict {MODEL} image_0000.nii.gz -o out -device cpu": (
        {
            1: (*NO_FOLDER, "listmodel", "circlemodel", "emptyshare"),
            2: ("missing", "emptyfolder", "file"),
            6: ("nope", "cuda", ""),
        },
        {"-f": ("7", "x"), "--checkpoint": ("none", "best")},
    ),
    f"export {MODEL} out": (
        {1: (*NO_FOLDER, "listmodel")},
        {"-f": ("7", "x"), "--checkpoint": ("best",), "--format": ("x",)},
    ),
    f"export {MODEL} out --format safetensors": ({1: (*NO_FOLDER, "listmodel")}, {"": ("",), "-f": ("7",)}),
    "import share out": ({1: (*NO_FOLDER, "emptyshare", MODEL)}, {}),
    "convert acdc source -o out": ({1: ("none",), 2: NO_FOLDER}, {"-d": ("0", "1000", "x")}),
    f"train-zero-dce -d {DATASET} -o weights.pth --iterations 1 --size 16": (
        {2: ("1", "DatasetX"), 4: ("folder", "file/below"), 6: NO_COUNT, 8: NO_COUNT},
        {"--batch": NO_COUNT, "--epochs": ("0", "-1", "x"), "--device": ("nope",), "--seed": ("x",)},
    ),
    "demo out": (
        {1: ("file", "file/below")},
        {"--data": (*NO_FOLDER, "raw", "Dataset001_Bad"), "--device": ("nope",), "--seed": ("-1", "x")},
    ),
    "doctor": ({}, {"--nothing": ("",)}),
    "nothing": ({}, {"": ("",)}),
}


def calls() -> list[str]:
    """Every bad call, as a shell would take it (@: an empty argument)."""
    found = []
    for call, (places, options) in CALLS.items():
        words = call.split()
        for place, values in places.items():
            found += [" ".join([*words[:place], value or "@", *words[place + 1 :]]) for value in values]
        for option, values in options.items():
            found += [" ".join([call, option, value or ("@" if option else "")]).strip() for value in values]
    return found


def write(path, array, spacing=(1.0, 1.0, 5.0), origin=(0.0, 0.0, 0.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    if image.GetDimension() == 3:
        image.SetSpacing(spacing)
        image.SetOrigin(origin)
    sitk.WriteImage(image, str(path), useCompression=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory, dataset):
    """Good and bad files, and a data set with a model; each test gets its own copy."""
    root = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    image, label = rng.normal(100, 20, (4, 24, 24)).astype(np.float32), np.zeros((4, 24, 24), np.uint8)
    label[1:3, 6:18, 6:18] = 1
    for name in ("image.nii.gz", "image_0000.nii.gz", "images/case_0000.nii.gz"):
        write(root / name, image)
    for folder in ("truth", "predictions"):
        write(root / folder / "case.nii.gz", label)
    for name in ("folder", "folder.png", "emptyfolder", "emptyshare", "source", "raw"):
        (root / name).mkdir()
    (root / "emptyshare" / "manifest.json").write_text("{}")
    (root / "folder" / "inside").write_text("x")
    for name in ("file", "text.nii.gz", "text.json"):
        (root / name).write_text("no such thing")
    (root / "empty").touch()
    (root / "latin.json").write_bytes(b'{"a": "\xff"}')
    whole = (root / "image.nii.gz").read_bytes()
    (root / "cut.nii.gz").write_bytes(whole[: len(whole) * 9 // 10])
    nan = image.copy()
    nan[0, 0, 0] = np.nan
    write(root / "nan.nii.gz", nan)
    write(root / "four.nii.gz", np.zeros((2, 3, 8, 8), np.float32))
    # Label maps that cannot be scored.
    whole = (root / "truth" / "case.nii.gz").read_bytes()
    (root / "cutmaps").mkdir()
    (root / "cutmaps" / "case.nii.gz").write_bytes(whole[:-12])
    write(root / "halfmaps" / "case.nii.gz", label * np.float32(1.5))
    write(root / "othermaps" / "case.nii.gz", label * np.uint8(9))
    write(root / "movedmaps" / "case.nii.gz", label, origin=(3.0, 0.0, 0.0))
    write(root / "fourmaps" / "case.nii.gz", np.stack([label, label]))
    write(root / "smallmaps" / "case.nii.gz", label[:, ::2])
    # JSON of every shape.
    dataset_json = {**dataset.dataset_json, "labels": {"background": 0, "one": 1}}
    plans = json.loads((dataset.preprocessed / "nnUNetDINAttoPlans.json").read_text())
    plans["dataset_name"] = DATASET
    plan = plans["configurations"]["2d"]

    def with_configurations(**configurations):
        return {**plans, "configurations": configurations}

    contents = {
        "number": 3, "list": [1], "null": None, "{}": {}, "dataset": dataset_json, "plans": with_configurations(
            **plans["configurations"], bare={"batch_size": 2}),
        "nolist": {**plans, "configurations": [plan]},
        "circle": with_configurations(**{"2d": {"inherits_from": "b"}, "b": {"inherits_from": "2d"}}),
        "self": with_configurations(**{"2d": {**plan, "inherits_from": "2d"}}),
        "orphan": with_configurations(**{"2d": {"inherits_from": "none"}}),
        "noarch": with_configurations(**{"2d": {**plan, "architecture": "DIN"}}),
        "nolabels": {**dataset_json, "labels": {"background": 0}},
        "wordlabels": {**dataset_json, "labels": {"background": "zero"}},
    }  # fmt: skip
    for name, content in contents.items():
        (root / f"{name}.json").write_text(json.dumps(content))
    # A data set with a model that has no weights.
    raw, preprocessed, results = (root / "nnUNet" / name / DATASET for name in ("raw", "preprocessed", "results"))
    for folder in (raw, preprocessed, results / MODEL):
        folder.mkdir(parents=True)
        (folder / "dataset.json").write_text(json.dumps(dataset_json))
    for part, array in (("imagesTr/case_0000", image), ("labelsTr/case", label)):
        write(raw / f"{part}.nii.gz", array)
    write(preprocessed / "gt_segmentations" / "case.nii.gz", label)
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": [], "val": ["case"]}]))
    heirs = with_configurations(**{"2d": plan, "parent": {"inherits_from": "2d"}, "child": {"inherits_from": "parent"}})
    named = {"nnUNetDINAtto": plans, "nnUNetHeir": heirs, "nnUNetList": [], "nnUNetCircle": contents["circle"]}
    for name, content in named.items():
        (preprocessed / f"{name}Plans.json").write_text(json.dumps(content))
    (results / MODEL / "plans.json").write_text(json.dumps(plans))
    write(results / MODEL / "fold_0" / "validation" / "case.nii.gz", label)
    (results / MODEL / "fold_0" / "checkpoint_final.pth").write_text("no checkpoint")
    (root / "fold").mkdir()
    (root / "badfold").mkdir()
    (root / "badfold" / "checkpoint_final.pth").write_text("no checkpoint")
    for name, content in (("listmodel", []), ("circlemodel", contents["circle"])):
        shutil.copytree(results / MODEL, root / name)
        (root / name / "plans.json").write_text(json.dumps(content))
    shutil.copytree(results / MODEL, root / MODEL)
    bad = root / "Dataset001_Bad"
    bad.mkdir()
    (bad / "dataset.json").write_text("[]")
    return root


@pytest.fixture
def world(files, tmp_path, monkeypatch):
    root = tmp_path / "files"
    shutil.copytree(files, root)
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(root / "nnUNet" / name))
    monkeypatch.chdir(root)
    return root


def tree(root):
    return {path.relative_to(root) for path in root.rglob("*")}


def run(call, capsys):
    """Exit code and the lines on standard error."""
    try:
        code = main([word.replace("@", "") for word in call.split()])
    except SystemExit as error:
        code = error.code
    return SimpleNamespace(code=code, lines=capsys.readouterr().err.strip().splitlines())


def check(call, root, capsys):
    before = tree(root)
    result = run(call, capsys)
    assert result.code in (1, 2), result
    assert result.lines and result.lines[-1].startswith("nnunet-din"), result.lines
    assert not any("Traceback" in line for line in result.lines)
    new = {path for path in tree(root) - before if (root / path).is_file()}
    assert not new, f"left behind: {new}"


@pytest.mark.parametrize("call", calls()[::9])
def test_a_bad_call_ends_in_one_line(call, world, capsys):
    check(call, world, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("call", [call for i, call in enumerate(calls()) if i % 9])
def test_every_other_bad_call_ends_in_one_line(call, world, capsys):
    check(call, world, capsys)


def test_our_own_faults_are_reported_and_a_full_device_is_none(world, capsys, monkeypatch):
    import torch

    from nnunet_din.commands import doctor

    def fail(error):
        def run(args):
            raise error

        monkeypatch.setattr(doctor, "run", run)

    fail(KeyError("ours"))
    result = run("doctor", capsys)
    assert result.code == 70 and result.lines[0].startswith("Traceback") and "Please report it" in result.lines[-1]
    fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    result = run("doctor", capsys)
    assert result.code == 1
    assert result.lines == ["nnunet-din doctor: the device has not enough memory: CUDA out of memory."]
