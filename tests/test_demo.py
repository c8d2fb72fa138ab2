"""The demo: which commands it runs, what it says when something is wrong, and (slow) that it learns.

The quick tests put stand-ins for nnU-Net's commands beside a pretended Python, so they need neither torch nor nnU-Net.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from pathlib import Path

import pytest

from nnunet_din.commands.main import main
from nnunet_din.data import write_dataset
from nnunet_din.nnunet.labels import label_names
from nnunet_din.runs import commandline, demo

COMMANDS = ("nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict", "nnUNetv2_evaluate_folder")

STAND_IN = """
import json, os, pathlib, shutil, sys
name, arguments = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
with open(os.environ["STAND_IN_RECORD"], "a") as record:
    kept = {k: v for k, v in os.environ.items() if k.startswith(("nnUNet_", "OMP_"))}
    record.write(json.dumps({"command": [name, *arguments], "environment": kept}) + "\\n")
if os.environ.get("STAND_IN_FAILS") == name:
    for line in range(40):
        print(f"line {line} of the output", flush=True)
    print("the reason is here", file=sys.stderr)
    sys.exit(3)
value = lambda flag: arguments[arguments.index(flag) + 1]
if name == "nnUNetv2_train":
    for epoch in range(2):
        print(f"2024-01-01 00:00:00.5: Epoch {epoch} ")
        print("2024-01-01 00:00:00.5: Pseudo dice [np.float32(0.5), np.float32(0.7), nan] ")
        print("2024-01-01 00:00:00.5: Epoch time: 1.25 s ")
if name == "nnUNetv2_predict":
    images, output = pathlib.Path(value("-i")), pathlib.Path(value("-o"))
    output.mkdir(parents=True, exist_ok=True)
    raw = images.parent
    for label in (raw / images.name.replace("images", "labels")).iterdir():
        shutil.copy(label, output)
    shutil.copy(raw / "dataset.json", output)
    shutil.copy(os.environ["STAND_IN_PLANS"], output / "plans.json")
if name == "nnUNetv2_evaluate_folder":
    output = pathlib.Path(arguments[1])
    cases = sorted(output.glob("*.nii.gz"))
    dice = {"1": {"Dice": 0.7}, "2": {"Dice": 0.8}, "3": {"Dice": 0.9}}
    per_case = [{"prediction_file": str(case), "metrics": dice} for case in cases]
    (output / "summary.json").write_text(json.dumps({"mean": dice, "metric_per_case": per_case}))
"""


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Stand-ins for nnU-Net's commands; returns a function that lists the calls made so far."""
    if os.name == "nt":
        pytest.skip("the stand-ins are scripts that name their interpreter")
    scripts = tmp_path / "bin"
    scripts.mkdir()
    for name in COMMANDS:
        (scripts / name).write_text(f"#!{sys.executable}\n{STAND_IN}")
        (scripts / name).chmod(0o755)
    record = tmp_path / "record.jsonl"
    record.touch()
    monkeypatch.setenv("STAND_IN_RECORD", str(record))
    monkeypatch.setenv("STAND_IN_PLANS", str(Path(__file__).parent / "fixtures" / "plans_44a6472.json"))
    monkeypatch.setattr(sys, "executable", str(scripts / "python"))
    for name in ("nnUNet_def_n_proc", "nnUNet_n_proc_DA", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(commandline, "_POLL", 0.02)
    return lambda: [json.loads(line) for line in record.read_text().splitlines()]


@pytest.fixture
def small_phantom(monkeypatch):
    """Makes the demo draw three small patients instead of sixteen."""
    monkeypatch.setattr(
        demo, "write_dataset", lambda folder, seed: write_dataset(folder, 1, 2, seed, size=32, slices=3)
    )


@pytest.fixture
def raw(tmp_path):
    """A raw data set of a user, with test cases."""
    return write_dataset(tmp_path / "mine" / "Dataset123_Mine", train=2, test=1, size=32, slices=3)


def run(*arguments):
    """The demo as the command line runs it; returns the exit code."""
    return main(["demo", *map(str, arguments)])


def test_cpu_starts_few_workers_and_the_users_values_win(tmp_path, monkeypatch):
    """Fails if the demo on a CPU starts nnU-Net's default of 12 workers, overrides the user, or limits a GPU run."""
    for name in ("nnUNet_def_n_proc", "nnUNet_n_proc_DA", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    cpu = commandline.child_environment(tmp_path, "cpu")
    assert (cpu["nnUNet_def_n_proc"], cpu["nnUNet_n_proc_DA"], cpu["OMP_WAIT_POLICY"]) == ("1", "0", "PASSIVE")
    assert cpu["nnUNet_raw"] == str(tmp_path / "nnUNet_raw")
    assert "nnUNet_n_proc_DA" not in commandline.child_environment(tmp_path, "cuda")
    monkeypatch.setenv("nnUNet_n_proc_DA", "6")
    assert commandline.child_environment(tmp_path, "cpu")["nnUNet_n_proc_DA"] == "6"


def test_phantom_from_start_to_end(tmp_path, stand_ins, small_phantom, capsys):
    """Fails if a step is left out, runs in another environment, or its result misses in the table or the picture."""
    folder = tmp_path / "demo"
    assert run(folder, "--device", "cpu") == 0
    calls = stand_ins()
    assert [call["command"][0] for call in calls] == list(COMMANDS)
    for call in calls:
        assert call["environment"]["nnUNet_raw"] == str(folder / "nnUNet_raw")
        assert call["environment"]["nnUNet_preprocessed"] == str(folder / "nnUNet_preprocessed")
        assert call["environment"]["nnUNet_results"] == str(folder / "nnUNet_results")
    # nnU-Net's planner stops with an error if this is 0.
    assert [call["environment"]["nnUNet_n_proc_DA"] for call in calls] == ["1", "0", "0", "0"]
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (folder / "logs").iterdir()) == [
        "evaluate.log", "predict.log", "preprocess.log", "train.log",
    ]  # fmt: skip
    output = capsys.readouterr().out
    for line in (
        "Step 1 of 4: Plan and preprocess",
        "$ nnUNetv2_train 999 2d all -tr nnUNetTrainerDIN_demo -p nnUNetDINAttoPlans -device cpu",
        "epoch 2 of ?: 1 s, Dice on random patches about 0.60",
        "Mean Dice over 2 unseen test cases:",
        "RV    0.700",
        "LV    0.900",
        "mean  0.800",
        str(folder / "demo.png"),
    ):
        assert line in output


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_works(tmp_path, stand_ins, small_phantom):
    """Fails if the demo trips over its own files, scores predictions of the first run, or returns other values than
    nnU-Net's summary.
    """
    result = demo.run_demo(tmp_path / "demo", device="cpu")
    assert result.dice == {"RV": 0.7, "MYO": 0.8, "LV": 0.9} and result.mean_dice == pytest.approx(0.8)
    assert result.unseen and result.picture.exists()
    assert list(result.seconds) == ["preprocess", "train", "predict", "evaluate"]
    (summary,) = (tmp_path / "demo" / "predictions").glob("*/summary.json")
    before = summary.stat().st_mtime_ns
    assert run(tmp_path / "demo", "--device", "cpu", "--seed", 1) == 0
    assert summary.stat().st_mtime_ns > before


def test_failing_command_ends_with_its_log_and_code_1(tmp_path, stand_ins, small_phantom, monkeypatch, capsys):
    """Fails if an error of nnU-Net is hidden: exit code, end of the log, its path and one sentence are needed."""
    monkeypatch.setenv("STAND_IN_FAILS", "nnUNetv2_train")
    folder = tmp_path / "demo"
    assert run(folder, "--device", "cpu") == 1
    captured = capsys.readouterr()
    assert "the reason is here" in captured.out
    assert "line 39 of the output" in captured.out
    assert "line 15 of the output" not in captured.out
    log = folder / "logs" / "train.log"
    assert captured.err.strip() == (
        f"nnunet-din demo: nnUNetv2_train failed with exit code 3; its whole output is in {log}."
    )
    assert "line 0 of the output" in log.read_text()
    assert [call["command"][0] for call in stand_ins()] == list(COMMANDS[:2])
    assert (folder / "nnUNet_raw" / demo.PHANTOM / "dataset.json").exists()


def test_missing_command_is_named(tmp_path, stand_ins, small_phantom, monkeypatch, capsys):
    """Fails if a missing nnU-Net gives a traceback instead of what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "bin" / "nnUNetv2_train").unlink()
    assert run(tmp_path / "demo", "--device", "cpu") == 1
    assert "nnUNetv2_train is not installed" in capsys.readouterr().err


def test_command_beside_python_comes_before_the_path(tmp_path, stand_ins, monkeypatch):
    """Fails if the demo takes another environment's nnU-Net, which may lack the plug-in."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("nnUNetv2_train", "nnUNetv2_other"):
        (elsewhere / name).write_text("#!/bin/sh\n")
        (elsewhere / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(elsewhere))
    assert commandline.find_command("nnUNetv2_train") == str(tmp_path / "bin" / "nnUNetv2_train")
    assert commandline.find_command("nnUNetv2_other") == str(elsewhere / "nnUNetv2_other")


def test_interrupt_stops_the_command(tmp_path, stand_ins):
    """Fails if the child goes on training after Ctrl-C."""
    script = tmp_path / "bin" / "nnUNetv2_train"
    script.write_text("#!/bin/sh\necho $$\nexec sleep 60\n")

    class Interrupting(commandline.Progress):
        def read(self, line):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        commandline.run_step(["nnUNetv2_train"], tmp_path / "train.log", dict(os.environ), Interrupting())
    pid = int((tmp_path / "train.log").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_own_data_is_read_where_it_lies(tmp_path, stand_ins, raw, capsys):
    """Fails if the user's data set is changed, copied or ignored; links need rights that few users of Windows have."""
    before = {path: path.stat().st_mtime_ns for path in raw.rglob("*")}
    folder = tmp_path / "demo"
    assert run(folder, "--data", raw, "--device", "cpu") == 0
    assert {path: path.stat().st_mtime_ns for path in raw.rglob("*")} == before
    assert not list((folder / "nnUNet_raw").iterdir())
    for call in stand_ins():
        assert call["environment"]["nnUNet_raw"] == str(raw.parent)
    assert stand_ins()[1]["command"][1] == "123"
    assert "1 unseen test cases" in capsys.readouterr().out
    # Once more: the results are there already.
    assert run(folder, "--data", raw, "--device", "cpu") == 0


def test_without_labelled_test_cases_the_training_images_are_predicted_and_it_says_so(tmp_path, stand_ins, raw, capsys):
    """Fails if the demo stops on a data set without test cases, or passes training cases off as unseen."""
    assert demo._part_to_predict(raw, ".nii.gz") == "Ts"
    (raw / "labelsTs/case_002.nii.gz").rename(raw / "labelsTs/case_009.nii.gz")
    assert demo._part_to_predict(raw, ".nii.gz") == "Tr"
    shutil.rmtree(raw / "labelsTs")
    assert not demo.run_demo(tmp_path / "demo", data=raw, device="cpu").unseen
    predict = stand_ins()[2]["command"]
    assert predict[predict.index("-i") + 1].endswith("imagesTr")
    output = capsys.readouterr().out
    assert "TRAINING images are predicted" in output and "Mean Dice over 2 TRAINING cases (not unseen)" in output


@pytest.mark.parametrize(
    ("folder", "data", "message"),
    [
        ("demo", "Mine", "must be called DatasetXXX_Name"),
        ("demo", "Dataset001_Nowhere", "does not exist"),
        ("demo", "Dataset010_NoJson", "dataset.json is not valid JSON"),
        ("demo", "Dataset011_NoEntries", "is no dataset.json"),
        ("file", None, "file"),
        ("--seed=-1", None, "seed must be 0 or more"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(folder, data, message, tmp_path, stand_ins, capsys, monkeypatch):
    """Fails if a wrong folder gives a traceback, a message that names no cause, starts nnU-Net, or is written to."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("Dataset010_NoJson", "{"), ("Dataset011_NoEntries", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset.json").write_text(text)
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert run(folder, "--device", "cpu", *(["--data", data] if data else [])) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
    assert sorted(tmp_path.rglob("*")) == before and not stand_ins()


def test_epochs_are_read_from_the_trainers_lines(tmp_path):
    """Fails if nnU-Net's lines are read wrongly: the number of epochs, or the Dice without missing structures."""
    (tmp_path / "debug.json").write_text('{"num_epochs": "3"}')
    progress = commandline.EpochProgress(tmp_path / "debug.json")
    lines = """\
        2024-05-05 10:00:00.123456: Epoch 0
        2024-05-05 10:00:00.123456: Current learning rate: 0.001
        2024-05-05 10:00:09.123456: Pseudo dice [np.float32(0.25), np.float32(0.75), nan]
        2024-05-05 10:00:09.123456: Epoch time: 9.4 s
        2024-05-05 10:00:09.123456: Epoch 1 """
    messages = [message for line in textwrap.dedent(lines).splitlines() if (message := progress.read(line))]
    assert messages == ["epoch 1 of 3: 9 s, Dice on random patches about 0.50"]
    assert (progress.total, progress.count()) == (3, 1)


def test_progress_counts_new_files_only(tmp_path):
    """Fails if the bar is full at once in a folder that holds the files of an earlier run."""
    (tmp_path / "old.pkl").touch()
    os.utime(tmp_path / "old.pkl", (1, 1))
    progress = commandline.FileProgress(2, tmp_path, "*.pkl")
    assert progress.count() == 0
    (tmp_path / "new.pkl").touch()
    os.utime(tmp_path / "new.pkl", (progress.start + 1, progress.start + 1))
    assert progress.count() == 1


def test_regions_are_named_in_table_and_picture(tmp_path):
    """Fails if data sets with overlapping regions lose their structures' names."""
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    summary = {
        "mean": {"(1, 2)": {"Dice": 0.9}, "(2,)": {"Dice": 0.6}},
        "metric_per_case": [
            {"prediction_file": "x/a.nii.gz", "metrics": {"(1, 2)": {"Dice": 0.8}, "(2,)": {"Dice": float("nan")}}}
        ],
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    dice, dice_of_case = demo._read_summary(tmp_path / "summary.json", labels)
    assert dice == {"whole": 0.9, "core": 0.6}
    assert dice_of_case == {"a.nii.gz": 0.8}
    assert label_names({"labels": labels, "regions_class_order": [1, 2]}) == {1: "whole", 2: "core"}


@pytest.mark.slow
def test_demo_learns_on_the_cpu(tmp_path):
    """Fails if planning, training, prediction or evaluation breaks with the real nnU-Net, or DIN does not learn; with
    the preset that takes half the demo's time.
    """
    result = demo.run_demo(tmp_path / "demo", device="cpu", planner="nnUNetPlannerDINFast", plans="nnUNetDINFastPlans")
    assert result.unseen
    assert result.mean_dice >= 0.80
    assert result.picture.read_bytes().startswith(b"\x89PNG")
