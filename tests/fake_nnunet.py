"""Stands in for nnU-Net's commands on the PATH: notes how it was called, and leaves files as nnU-Net does."""

from __future__ import annotations

import json
import os
import sys
import time
import zipfile
from pathlib import Path

COMMANDS = (
    "nnUNetv2_plan_and_preprocess",
    "nnUNetv2_preprocess",
    "nnUNetv2_train",
    "nnUNetv2_find_best_configuration",
    "nnUNetv2_predict",
    "nnUNetv2_evaluate_folder",
    "nnUNetv2_ensemble",
    "nnUNetv2_apply_postprocessing",
    "nnunet-din",
)
DATASET = "Dataset993_TestCrossval"


def install(folder: Path) -> None:
    """Put the commands into a folder."""
    folder.mkdir(parents=True)
    for name in COMMANDS:
        (folder / name).write_text(f"#!{sys.executable} -S\n{Path(__file__).read_text(encoding='utf-8')}")
        (folder / name).chmod(0o755)


def calls(folder: Path) -> list[dict]:
    """What was called with this folder of results, in the order of the ends."""
    path = folder / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def write_plans(preprocessed: Path, name: str, configurations=("2d",)) -> None:
    """Plans, and data that were preprocessed by them."""
    content = {
        "dataset_name": DATASET,
        "plans_name": name,
        "configurations": {c: {"data_identifier": f"{name}_{c}"} for c in configurations},
    }
    (preprocessed / "gt_segmentations").mkdir(parents=True, exist_ok=True)
    for case in range(5):
        (preprocessed / "gt_segmentations" / f"case.{case}.nii.gz").touch()
    (preprocessed / "dataset.json").write_text('{"file_ending": ".nii.gz"}')
    (preprocessed / f"{name}.json").write_text(json.dumps(content))
    for configuration in configurations:
        (preprocessed / f"{name}_{configuration}").mkdir(exist_ok=True)
        for case in range(5):
            (preprocessed / f"{name}_{configuration}" / f"case.{case}.pkl").touch()


def write_fold(
    folder: Path, checkpoint: str | None = "checkpoint_final.pth", epochs: int = 2, validated: bool = True, score=0.0
):
    """What a training leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "plans.json").write_text("{}")
    (folder / "debug.json").write_text('{"num_epochs": "2"}')
    lines = [
        line
        for epoch in range(epochs)
        for line in (f"x: Epoch {epoch} ", "x: Pseudo dice [np.float32(0.5), 0.7] ", "x: Epoch time: 30.0 s ")
    ]
    (folder / "training_log_2026_1_1_00_00_00.txt").write_text("\n".join(lines) + "\n")
    if checkpoint:
        with zipfile.ZipFile(folder / checkpoint, "w") as file:
            file.writestr("weights", "0")
    if validated:
        (folder / "validation").mkdir(exist_ok=True)
        scores = {"metric_per_case": [{}], "foreground_mean": {"Dice": score}}
        (folder / "validation" / "summary.json").write_text(json.dumps(scores))
        (folder / "validation" / "case.npz").touch()


def main() -> int:
    """Do as the command of this name does."""
    name, words, begin = Path(sys.argv[0]).name, sys.argv[1:], time.time()
    results = Path(os.environ["nnUNet_results"])
    status = 0
    if name == "nnUNetv2_train":
        _, configuration, fold = words[:3]
        trainer, plans = words[words.index("-tr") + 1], words[words.index("-p") + 1]
        folder = results / DATASET / f"{trainer}__{plans}__{configuration}" / f"fold_{fold}"
        (results / f"begun_{configuration}_{fold}").write_text(str(os.getpid()))
        while (results / "hold").exists():
            time.sleep(0.05)
        if (results / f"fail_{fold}").exists():
            print("RuntimeError: this fold was made to fail")
            status = 1
        else:
            write_fold(folder)
    elif name == "nnUNetv2_find_best_configuration":
        trainer, plans = words[words.index("-tr") + 1], words[words.index("-p") + 1]
        members = [{"trainer": trainer, "plans_identifier": plans, "configuration": c} for c in ("2d", "3d_fullres")]
        best = {"selected_model_or_models": members, "postprocessing_file": "post.pkl", "some_plans_file": "plans.json"}
        note = {"best_model_or_ensemble": best}
        (results / DATASET / "inference_information.json").write_text(json.dumps(note))
    elif name == "nnUNetv2_evaluate_folder":
        Path(words[1]).mkdir(parents=True, exist_ok=True)
        (Path(words[1]) / "summary.json").write_text("{}")
    elif name == "nnunet-din":
        folder = Path(words[words.index("-o") + 1]) if "-o" in words else results / DATASET / "leaderboard"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "leaderboard.html").touch()
    elif name == "nnUNetv2_plan_and_preprocess":
        plans = (
            words[words.index("-overwrite_plans_name") + 1] if "-overwrite_plans_name" in words else "nnUNetDINPlans"
        )
        write_plans(Path(os.environ["nnUNet_preprocessed"]) / DATASET, plans)
    variables = ("CUDA_VISIBLE_DEVICES", "nnUNet_n_proc_DA", "SLURM_JOB_ID", "FROM_SETUP")
    call = {
        "command": [name, *words],
        "begin": begin,
        "end": time.time(),
        **{v: os.environ.get(v) for v in variables},
    }
    with (results / "calls.jsonl").open("a") as file:
        file.write(json.dumps(call) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
