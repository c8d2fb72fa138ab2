"""``nnunet-din crossval`` and ``status``: with stand-ins for nnU-Net's commands, with the commands themselves, and on
a Slurm.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

import fake_nnunet
from fake_nnunet import DATASET, calls, write_fold, write_plans
from nnunet_din.commands import crossval as command
from nnunet_din.commands.main import main
from nnunet_din.nnunet import classes
from nnunet_din.runs.commandline import running
from nnunet_din.runs.crossval.locks import gpus, is_locked, lock
from nnunet_din.runs.crossval.models import read_models_file
from nnunet_din.runs.crossval.state import FoldFiles, fold_state
from nnunet_din.runs.crossval.steps import continued, shell_line

ROOT = Path(__file__).parents[1]
PLANS, MODEL = "nnUNetDINPlans", "nnUNetTrainerDIN__nnUNetDINPlans__2d"
BOTH = ("crossval", "-d", "993", "-c", "2d", "3d_fullres")
CPU = (*BOTH, "-device", "cpu")

posix_only = pytest.mark.skipif(os.name == "nt", reason="steps do not run on Windows")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """nnU-Net's folders with plans and data, and stand-ins for its commands."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
        (tmp_path / name).mkdir()
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # of the locks of GPUs
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write_plans(tmp_path / "preprocessed" / DATASET, PLANS, ("2d", "3d_fullres"))
    fake_nnunet.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    for part in ("imagesTs", "labelsTs"):
        (tmp_path / part).mkdir()
    # Tests of nnU-Net's own look-up are in test_plugin.py; here its answer is known, and torch is not loaded.
    monkeypatch.setattr(classes, "find_trainer", lambda name: None)
    monkeypatch.setattr(classes, "find_planner", lambda name: None)
    return SimpleNamespace(
        root=tmp_path, results=tmp_path / "results", dataset=tmp_path / "results" / DATASET,
        test=("--test", str(tmp_path / "imagesTs"), str(tmp_path / "labelsTs")),
    )  # fmt: skip


def dry_run(capsys, *arguments) -> list[str]:
    assert main([*arguments, "--dry-run"]) == 0
    return capsys.readouterr().out.splitlines()


def commands(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith("#")]


def trainings(found: list[dict]) -> list[str]:
    return [" ".join(call["command"][1:4]) for call in found if call["command"][0] == "nnUNetv2_train"]


def test_a_dry_run_prints_the_stock_commands_that_are_left(world, capsys):
    """Two configurations: probabilities for the ensemble, one choice, both predicted, both compared."""
    lines = commands(dry_run(capsys, *BOTH, *world.test, "-device", "cuda"))
    assert lines[0] == "nnUNetv2_train 993 2d 0 -tr nnUNetTrainerDIN -p nnUNetDINPlans --npz"
    assert lines[10] == (
        "nnUNetv2_find_best_configuration 993 -c 2d 3d_fullres -tr nnUNetTrainerDIN -p nnUNetDINPlans -f 0 1 2 3 4"
    )
    assert [line.split()[0] for line in lines[11:]] == [
        "nnUNetv2_predict", "nnUNetv2_evaluate_folder", "nnUNetv2_predict", "nnUNetv2_evaluate_folder", "nnunet-din",
        "nnunet-din",
    ]  # fmt: skip
    assert "--save_probabilities" in lines[11] and not list(world.results.iterdir())
    # Done, interrupted, not validated, and a checkpoint that was cut off.
    folder = world.dataset / MODEL
    write_fold(folder / "fold_0")
    write_fold(folder / "fold_1", "checkpoint_latest.pth", epochs=1, validated=False)
    write_fold(folder / "fold_2", validated=False)
    write_fold(folder / "fold_3", "checkpoint_best.pth", validated=False)
    (folder / "fold_3" / "checkpoint_latest.pth").write_bytes(b"PK cut")
    lines = dry_run(capsys, *CPU)
    assert f"# train/{MODEL}/fold_0: done" in lines
    left = commands(lines)
    assert left[0].startswith("nnUNetv2_train 993 2d 1 ") and left[0].endswith("-device cpu --npz --c")
    assert left[1].startswith("nnUNetv2_train 993 2d 2 ") and left[1].endswith("--val")
    cut = folder / "fold_3" / "checkpoint_latest.pth"
    assert left[2].endswith(f" {cut} {cut}.unreadable")
    assert left[3].endswith("--c")
    assert left[4].endswith("-device cpu --npz")


@posix_only
def test_missing_plans_and_data_are_made(world, capsys, monkeypatch):
    """nnU-Net's planners take nnUNet_n_proc_DA=0 for a number of threads."""
    preprocessed = world.root / "preprocessed" / DATASET
    (preprocessed / "nnUNetDINPlans_2d" / "case.1.pkl").unlink()
    assert commands(dry_run(capsys, *CPU))[0] == "nnUNetv2_preprocess -d 993 -plans_name nnUNetDINPlans -c 2d"
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    raw = world.root / "raw" / DATASET
    raw.mkdir()
    (raw / "dataset.json").write_text("{}")
    (preprocessed / f"{PLANS}.json").unlink()
    file = world.root / "models.yaml"
    model = "{trainer: nnUNetTrainerDIN, plans: nnUNetDINPlans, configuration: 2d, folds: [0]}"
    file.write_text(f"models: [{model}]\nplanning: {{nnUNetDINPlans: {{arguments: [-gpu_memory_target, 11]}}}}\n")
    assert commands(dry_run(capsys, "crossval", "-d", "993", "--models", str(file), "-device", "cpu"))[0] == (
        "nnUNet_n_proc_DA=1 nnUNetv2_plan_and_preprocess -d 993 -pl nnUNetPlannerDIN -overwrite_plans_name "
        "nnUNetDINPlans -c 2d --verify_dataset_integrity -gpu_memory_target 11"
    )


def test_the_cascade_waits_for_its_first_stage(world, capsys):
    write_plans(world.root / "preprocessed" / DATASET, "nnUNetPlans", ("3d_lowres", "3d_cascade_fullres"))
    arguments = ("crossval", "-d", "993", "-device", "cpu", "-tr", "nnUNetTrainer", "-p", "nnUNetPlans")
    arguments += ("-c", "3d_cascade_fullres")
    assert main([*arguments, "--dry-run"]) == 1 and "needs 3d_lowres" in capsys.readouterr().err
    lines = commands(dry_run(capsys, *arguments, "3d_lowres", *world.test))
    order = [line.split()[2] for line in lines if line.startswith("nnUNetv2_train")]
    assert order == ["3d_lowres"] * 5 + ["3d_cascade_fullres"] * 5
    (last,) = [line for line in lines if "-prev_stage_predictions" in line]
    assert last.split()[last.split().index("-prev_stage_predictions") + 1].endswith("__3d_lowres")


def test_weights_to_start_from_are_for_the_start_only(tmp_path):
    """nnU-Net refuses -pretrained_weights beside --c."""
    command = ("nnUNetv2_train", "1", "2d", "0", "-pretrained_weights", "w.pth", "--npz")
    assert continued(command, FoldFiles(tmp_path / "fold_0")) == [command]
    write_fold(tmp_path / "fold_0", "checkpoint_best.pth", validated=False)
    assert continued(command, FoldFiles(tmp_path / "fold_0")) == [("nnUNetv2_train", "1", "2d", "0", "--npz", "--c")]


def test_a_fold_without_probabilities_is_not_done_where_an_ensemble_needs_them(tmp_path):
    write_fold(tmp_path / "fold_0")
    assert FoldFiles(tmp_path / "fold_0", probabilities=True).complete()
    (tmp_path / "fold_0" / "validation" / "case.npz").unlink()
    assert FoldFiles(tmp_path / "fold_0").complete()
    (command,) = continued(("nnUNetv2_train", "--npz"), FoldFiles(tmp_path / "fold_0", probabilities=True))
    assert command == ("nnUNetv2_train", "--npz", "--val")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: 3", "must be a list of models"),
        ("models: [{trainer: a, plans: b}]", "model 1 has no configuration"),
        ("models: [{trainer: a, plans: b, configuration: 2d, fold: 1}]", "unknown fold"),
        ("models: [{trainer: a, plans: b, configuration: 2d, folds: [x]}]", "`folds` must be"),
        ("models: [{trainer: a, plans: b, configuration: 2d, arguments: -x}]", "`arguments` must be"),
        ("models: [{trainer: a, plans: b, configuration: 2d}]\nslurm: {time: [2d]}", "`time` must be a text"),
        ("models: [{trainer: a, plans: b, configuration: 2d}]\nplanning: {b: {}}", "name the `planner`"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_models_file_says_what_is_wrong_with_it(tmp_path, text, message):
    (tmp_path / "models.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_models_file(tmp_path / "models.yaml", [0])


def test_what_a_job_gets_from_slurm(tmp_path):
    (tmp_path / "models.yaml").write_text(
        "models: [{trainer: a, plans: b, configuration: 2d}]\n"
        "slurm: {partition: gpu, time: 48h, memory: 64GB, cpus: 12, gpu_model: a100, setup: [module load cuda],\n"
        "        without_gpu: {partition: cpu}}\n"
    )
    cluster = read_models_file(tmp_path / "models.yaml", [0]).cluster
    common = {"runtime": "48h", "mem": "64GB", "cpus_per_task": 12}
    assert cluster.gpu == {**common, "slurm_partition": "gpu", "gpu_model": "a100"}
    assert cluster.cpu == {**common, "slurm_partition": "cpu"} and cluster.setup == ("module load cuda",)


@posix_only
def test_two_trainings_get_two_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with gpus(["0", "1"], 1) as first, gpus(["0", "1"], 1) as second:
        assert [first, second] == [["0"], ["1"]]
    with gpus(["0", "1"], 2) as both:
        assert both == ["0", "1"]


@posix_only
def test_a_log_is_locked_while_a_process_writes_to_it(tmp_path):
    """Fails if a fold could be trained a second time beside what a killed runner has left."""
    path = tmp_path / "logs" / "log"
    with lock(path) as log:
        left = subprocess.Popen(["sleep", "60"], stdout=log)
    assert is_locked(path) and lock(path) is None
    left.kill()
    left.wait()
    assert not is_locked(path)


@posix_only
def test_a_killed_process_leaves_nothing_of_its_commands(tmp_path):
    """Its command and the processes of this, which hold the pipe open, end with it; one of them ignores to be asked."""
    code = (
        "import sys, time; from nnunet_din.runs.commandline import running\n"
        "with running(['sh', '-c', \"trap '' TERM; sleep 60 & echo begun; wait\"], sys.stdout): time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout.readline() == b"begun\n"
        begin = time.monotonic()
        process.kill()
        assert process.stdout.read() == b"" and time.monotonic() - begin < 10


@posix_only
def test_a_command_that_ends_takes_its_processes_with_it():
    output, end = os.pipe()
    with open(end, "wb") as log, running(["sh", "-c", "sleep 60 & exit 3"], log) as process:
        assert process.wait() == 3
    with open(output, "rb") as file:
        begin = time.monotonic()
        assert file.read() == b"" and time.monotonic() - begin < 10


def test_on_windows_there_are_lines_to_paste(tmp_path, monkeypatch):
    (tmp_path / "checkpoint_latest.pth").write_bytes(b"PK cut")
    aside, _ = continued(("nnUNetv2_train", "1", "2d", "0"), FoldFiles(tmp_path))
    with monkeypatch.context() as windows:  # pytest itself fails to report under this name
        windows.setattr("os.name", "nt")
        moved, rest = shell_line(aside), shell_line(aside[3:])
        lines = shell_line(("nnUNetv2_train", "a b"), {"nnUNet_n_proc_DA": "1"}).splitlines()
        with pytest.raises(ValueError, match="On Windows .* --dry-run"):
            command.run(Namespace(dry_run=False))
    assert moved.endswith('shutil.move(*sys.argv[1:])" ' + rest)
    assert lines == ["# with the environment variable nnUNet_n_proc_DA=1:", 'nnUNetv2_train "a b"']


def test_files_are_moved_and_copied_without_programs_of_one_system(tmp_path):
    (tmp_path / "checkpoint_latest.pth").write_bytes(b"PK cut")
    aside, _ = continued(("nnUNetv2_train", "1", "2d", "0"), FoldFiles(tmp_path))
    subprocess.run([sys.executable, *aside[1:]], check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_latest.pth.unreadable"]


def test_status_of_trainings_that_were_started_by_hand(world, capsys):
    folder = world.dataset / MODEL
    write_fold(folder / "fold_0")
    write_fold(folder / "fold_1", None, epochs=1, validated=False)
    write_fold(folder / "fold_2", "checkpoint_latest.pth", epochs=1, validated=False)
    (log,) = (folder / "fold_2").glob("training_log_*")
    os.utime(log, (time.time() - 3600,) * 2)
    assert main(["status", "-d", "993"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[1:] for row in rows] == [
        ["0", "done", "2/2", "0.600", "30.0"],
        ["1", "running", "1/2", "0.600", "30.0", "0", "min"],
        ["2", "interrupted", "1/2", "0.600", "30.0"],
    ]


@posix_only
def test_a_failed_fold_says_so_until_somebody_goes_on_by_hand(tmp_path):
    write_fold(tmp_path / "fold_0", "checkpoint_latest.pth", epochs=1, validated=False)
    files, log = FoldFiles(tmp_path / "fold_0"), tmp_path / "train.log"
    with lock(log):
        assert fold_state("m", "0", files, log).status == "running"
    assert fold_state("m", "0", files, log).status == "interrupted"
    log.write_text("2026-11-27 22:00:00 FAILED with exit code 1 after 0.1 min\n")
    assert fold_state("m", "0", files, log).status == "failed"
    os.utime(log, (time.time() - 60,) * 2)
    assert fold_state("m", "0", files, log).status == "running"


def test_without_snakemake_one_sentence_says_what_to_do(world, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert main([*CPU]) == 1
    said = capsys.readouterr().err
    assert "Snakemake" in said and ("nnunet-din[crossval]" in said or "3.11" in said) and not calls(world.results)


needs_snakemake = pytest.mark.skipif(sys.version_info < (3, 11), reason="Snakemake needs Python 3.11")


@needs_snakemake
@pytest.mark.slow
def test_an_exported_workflow_is_what_runs(world):
    """Snakemake takes the two files as they are, and counts every step."""
    assert main([*CPU, *world.test, "--export-workflow", str(world.root / "out")]) == 0
    arguments = ("--configfile", "crossval.json", "--cores", "1", "--dry-run", "--quiet", "rules")
    command = [sys.executable, "-m", "snakemake", *arguments]
    said = subprocess.run(command, cwd=world.root / "out", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert said.returncode == 0 and said.stdout.split("\ntotal ")[1].split()[0] == str(10 + 1 + 2 + 1 + 2 + 1)


def wait_until(true, process, seconds=120):
    """Wait, and show what a process has printed that has ended before."""
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)


def finish(world, *arguments) -> str:
    process = run(world, *arguments)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


def run(world, *arguments) -> subprocess.Popen:
    code = "from nnunet_din.nnunet import classes; classes.find_trainer = classes.find_planner = lambda name: None\n"
    code += "import sys; from nnunet_din.commands.main import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=world.root,
    )  # fmt: skip


@needs_snakemake
@pytest.mark.slow
def test_gpus_a_failed_fold_and_what_is_left(world):
    """Two GPUs train two folds at once; one fold fails; the next run does that fold and what waited for it."""
    arguments = (*BOTH, *world.test, "--gpus", "3", "5", "--folds", "0", "1", "2")
    (world.results / "fail_2").touch()
    (world.results / "hold").touch()
    process = run(world, *arguments)
    wait_until(lambda: len(list(world.results.glob("begun_*"))) == 2, process)
    second = run(world, *arguments)
    assert "is running already" in second.communicate()[0] and second.returncode == 1
    (world.results / "hold").unlink()
    output = process.communicate()[0]
    assert process.returncode == 1, output
    found = calls(world.results)
    trained = [call for call in found if call["command"][0] == "nnUNetv2_train"]
    assert len(trained) == 6 and {call["CUDA_VISIBLE_DEVICES"] for call in trained} == {"3", "5"}
    for one in trained:
        at_once = [o for o in trained if o is not one and o["begin"] < one["end"] and one["begin"] < o["end"]]
        assert all(o["CUDA_VISIBLE_DEVICES"] != one["CUDA_VISIBLE_DEVICES"] for o in at_once)
    # Model by model and fold by fold; two begin nearly at once.
    begun = trainings(sorted(trained, key=lambda call: call["begin"]))
    wanted = [f"993 {configuration} {fold}" for configuration in ("2d", "3d_fullres") for fold in range(3)]
    assert all(abs(begun.index(one) - place) <= 1 for place, one in enumerate(wanted)), begun
    assert "  | RuntimeError: this fold was made to fail" in output and " failed" in output
    assert not any(call["command"][0] == "nnUNetv2_find_best_configuration" for call in found)
    # Both fold 2, and all that waited for them.
    (world.results / "fail_2").unlink()
    output = finish(world, *arguments)
    assert " failed" not in output and str(world.dataset / "leaderboard") in output
    new = calls(world.results)[len(found) :]
    assert sorted(trainings(new)) == ["993 2d 2", "993 3d_fullres 2"]
    others = [call["command"][0] for call in new if call["command"][0] != "nnUNetv2_train"]
    assert sorted(others) == sorted(
        ["nnUNetv2_find_best_configuration", "nnUNetv2_ensemble", "nnUNetv2_apply_postprocessing"]
        + ["nnUNetv2_predict", "nnUNetv2_evaluate_folder", "nnunet-din"] * 2
    )
    # Nothing is left; then one fold is trained anew by hand, and what depends on it is out of date.
    finish(world, *arguments)
    assert len(calls(world.results)) == len(found) + len(new)
    shutil.rmtree(world.dataset / MODEL / "fold_0")
    write_fold(world.dataset / MODEL / "fold_0", score=0.5)
    finish(world, *arguments)
    # All but the prediction of the other model, and its scores.
    last = calls(world.results)[len(found) + len(new) :]
    assert not trainings(last) and len(last) == len(others) - 2
    # One configuration of one: other commands choose and compare.
    finish(world, *arguments, "-c", "2d")
    again = calls(world.results)[len(found) + len(new) + len(last) :]
    assert sorted(call["command"][0] for call in again) == [
        "nnUNetv2_apply_postprocessing", "nnUNetv2_evaluate_folder", "nnUNetv2_find_best_configuration",
        "nnUNetv2_predict", "nnunet-din", "nnunet-din",
    ]  # fmt: skip


@needs_snakemake
@pytest.mark.slow
def test_whatever_is_killed_ends_the_training_and_the_next_call_goes_on(world):
    """By SIGKILL, as by the kernel where memory is short; fails if a training goes on beside the next one."""
    import psutil

    arguments = ("crossval", "-d", "993", "-device", "cpu", "--folds", "0")
    begun, hold = world.results / "begun_2d_0", world.results / "hold"
    hold.touch()
    for member in (1, -2, -1):  # the runner of its step, Snakemake, the command itself
        process = run(world, *arguments)
        wait_until(begun.exists, process)
        training = psutil.Process(int(begun.read_text()))
        family = [training, *training.parents()]
        family = family[: family.index(psutil.Process(process.pid)) + 1]
        family[member].kill()
        process.communicate()
        assert not psutil.wait_procs([training], timeout=30)[1], family[member]
        begun.unlink()
    hold.unlink()
    finish(world, *arguments)
    assert trainings(calls(world.results)) == ["993 2d 0"]


#: Trainers of two epochs of one iteration, which wait before the second one while a file says so.
TRAINERS = """
import os, time
from pathlib import Path
from nnunet_din.planners.din_planners import nnUNetPlannerDINFast
from nnunet_din.network.presets import PRESETS
from nnunet_din.trainers.training_length import nnUNetTrainerDIN_smoke

PRESETS["small"] = {**PRESETS["fast"], "decoder_channels": 8, "fused_stages": 1}

class Small(nnUNetPlannerDINFast):
    preset = "small"

class One(nnUNetTrainerDIN_smoke):
    num_iterations_per_epoch = num_val_iterations_per_epoch = 1

    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        while self.current_epoch == 1 and Path(os.environ["nnUNet_results"], "hold").exists():
            time.sleep(0.1)

class Two(One):
    pass
"""


@needs_snakemake
@pytest.mark.slow
def test_nnunets_own_commands(tmp_path, monkeypatch, forked_workers):
    """Two models of two folds, planned, killed in the second epoch of a fold, gone on with by --c, chosen, compared."""
    from nnunet_din.data import write_dataset

    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
        (tmp_path / name).mkdir()
    for variable, value in {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(variable, value)
    write_dataset(tmp_path / "raw" / DATASET, train=5, test=0, size=32, slices=3)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "short_trainers.py").write_text(TRAINERS)
    (tmp_path / "site" / "sitecustomize.py").write_text(
        (forked_workers / "sitecustomize.py").read_text() + "from nnunet_din import plugin\n"
        "plugin.CLASSES.update(dict.fromkeys(('One', 'Two', 'Small'), 'short_trainers'))\n"
        "plugin.register()\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), str(ROOT)]))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "models.yaml").write_text(
        "models: [{trainer: One, plans: smallPlans, configuration: 2d},\n"
        "         {name: the second, trainer: Two, plans: smallPlans, configuration: 2d}]\n"
        "planning: {smallPlans: {planner: Small, arguments: [-np, 1, -npfp, 1, -gpu_memory_target, 0.2]}}\n"
    )

    def start(*arguments) -> subprocess.Popen:
        command = [sys.executable, "-m", "nnunet_din.commands.main", *arguments, "-d", "993"]
        return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path)

    crossval = ("crossval", "--models", "models.yaml", "--folds", "0", "1")
    folder = tmp_path / "results" / DATASET
    (tmp_path / "results" / "hold").touch()
    process = start(*crossval)
    wait_until(lambda: list(folder.glob("*/fold_*/checkpoint_latest.pth")), process, 400)
    (latest,) = folder.glob("*/fold_*/checkpoint_latest.pth")
    assert " running " in start("status").communicate()[0]
    process.kill()
    process.communicate()
    (tmp_path / "results" / "hold").unlink()
    process = start(*crossval)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    (continued_fold,) = [line for line in output.splitlines() if line.endswith("--c")]
    assert f"nnUNetv2_train 993 2d {latest.parent.name.removeprefix('fold_')} " in continued_fold
    logs = "".join(path.read_text() for path in sorted(latest.parent.glob("training_log_*")))
    assert logs.count("Epoch 0") == 1
    assert "the second" in (folder / "leaderboard" / "leaderboard.html").read_text()
    assert len(list(folder.glob("inference_information__*.json"))) == 2


@pytest.fixture(scope="module")
def slurm():
    """A Slurm of one node, as a script starts it; skipped with the reason where that cannot be."""
    script = ROOT / "scripts" / "slurm_for_tests.sh"
    started = subprocess.run([str(script)], capture_output=True, text=True)
    if started.returncode:
        pytest.skip(f"no Slurm: {' '.join(started.stderr.split())[-300:]}")
    folder = started.stdout.strip()
    yield
    subprocess.run([str(script), "stop", folder], check=True)
    shutil.rmtree(folder, ignore_errors=True)


@needs_snakemake
@pytest.mark.slow
def test_a_real_slurm(world, slurm):
    """Jobs with their resources and set-up lines, in their order; preempted ones are put into the queue again."""
    profile = world.root / "profile"
    profile.mkdir()
    (profile / "config.yaml").write_text(
        "slurm-status-command: squeue\nslurm-init-seconds-before-status-checks: 1\nseconds-between-status-checks: 1\n"
    )
    file = world.root / "models.yaml"
    file.write_text(
        "models: [{name: m, trainer: nnUNetTrainerDIN, plans: nnUNetDINPlans, configuration: 2d, folds: [0, 1]}]\n"
        "slurm: {partition: tests, time: 5m, memory: 100MB, cpus: 1, setup: [export FROM_SETUP=yes]}\n"
    )
    (world.results / "hold").touch()
    arguments = ("--models", str(file), "--executor", "slurm", "-device", "cpu", "--profile", str(profile))
    process = run(world, "crossval", "-d", "993", *arguments)
    queue = ("squeue", "--noheader", "--states=R", "--format=%i %k %l %m")

    def jobs() -> list[str]:
        return subprocess.run(queue, capture_output=True, text=True, check=True).stdout.splitlines()

    # Both have begun to train, on which they are held. Each job starts Snakemake twice more.
    wait_until(lambda: len(jobs()) == 2 and len(list(world.results.glob("begun_*"))) == 2, process, 300)
    assert all(job.split()[-2:] == ["5:00", "100M"] for job in jobs())
    # What a preemption does to a job. Slurm lets it wait for two minutes then.
    job = jobs()[0].split()[0]
    subprocess.run(["scontrol", "requeue", job], check=True)
    state = ("squeue", "--noheader", f"--jobs={job}", "--format=%T")
    wait_until(lambda: subprocess.run(state, capture_output=True, text=True).stdout.strip() == "PENDING", process)
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)
    (world.results / "hold").unlink()
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    found = calls(world.results)
    assert sorted(trainings(found)) == ["993 2d 0", "993 2d 1"]
    assert all(call["FROM_SETUP"] == "yes" and call["SLURM_JOB_ID"] for call in found)
    assert found[-1]["command"][0] in ("nnunet-din", "nnUNetv2_find_best_configuration") and len(found) == 4
