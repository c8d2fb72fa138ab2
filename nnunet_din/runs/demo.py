"""From raw data to segmented test cases with nnU-Net's own commands, in a few minutes.

The demo needs no download: it draws its own data set, a phantom of cardiac MR. Every command is printed before it runs,
so that the demo can be repeated by hand.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from nnunet_din.data import write_dataset
from nnunet_din.data.files import read_json
from nnunet_din.nnunet.devices import usable_device
from nnunet_din.nnunet.labels import label_names, read_dataset_json
from nnunet_din.runs.commandline import (
    FOLDERS,
    EpochProgress,
    FileProgress,
    Progress,
    child_environment,
    duration,
    run_step,
)

__all__ = ["DemoResult", "build_commands", "run_demo"]

PHANTOM = "Dataset999_CardiacPhantom"
CONFIGURATION = "2d"


@dataclass(frozen=True)
class DemoResult:
    """What the demo made.

    Attributes
    ----------
    folder : pathlib.Path
        The demo's folder.
    dice : dict of str to float
        Mean Dice over the cases of each structure, 0 to 1; NaN where no case has the structure.
    mean_dice : float
        Mean over the structures, 0 to 1.
    unseen : bool
        Whether these are test cases. False: they are the training cases, because no test cases with labels are there.
    predictions : pathlib.Path
        Folder with the predicted label maps and nnU-Net's `summary.json`.
    picture : pathlib.Path
        PNG with three cases.
    seconds : dict of str to float
        Duration of each step in s.
    """

    folder: Path
    dice: dict[str, float]
    mean_dice: float
    unseen: bool
    predictions: Path
    picture: Path
    seconds: dict[str, float]


def run_demo(
    folder: Path,
    data: Path | None = None,
    device: str | None = None,
    trainer: str = "nnUNetTrainerDIN_demo",
    planner: str = "nnUNetPlannerDINAtto",
    plans: str = "nnUNetDINAttoPlans",
    seed: int = 0,
) -> DemoResult:
    """Plan, train, predict and evaluate with nnU-Net's own commands, and draw a picture of the result.

    Parameters
    ----------
    folder : pathlib.Path
        Where everything is written; made if needed. nnU-Net's three folders, logs, predictions and `demo.png` go there.
    data : pathlib.Path, optional
        Raw nnU-Net data set to use, a folder called DatasetXXX_Name. It is read where it lies.
        By default the phantom is drawn.
    device : {"cpu", "cuda", "mps"}, optional
        Where to train and predict. By default as in `nnunet_din.nnunet.devices.usable_device`.
    trainer, planner, plans : str
        Names of nnU-Net's trainer and planner classes, and of the plans that the planner writes.
    seed : int
        Seed of the phantom, 0 or more; without effect on `data`.

    Returns
    -------
    DemoResult
        Dice values, and where the picture and the predictions are.

    Raises
    ------
    ValueError, OSError
        If the data set cannot be used, or the folder holds something else.
    CommandError
        If a command is not installed, or fails. Results of earlier steps stay.
    """
    begin = time.monotonic()
    folder = Path(os.path.abspath(folder))
    raw = _prepare_dataset(folder, data, seed)
    dataset_json = read_dataset_json(raw / "dataset.json")
    ending = dataset_json["file_ending"]
    part = _part_to_predict(raw, ending)
    cases = _list_cases(raw / f"images{part}", ending)
    number_of_training_cases = len(_list_cases(raw / "imagesTr", ending))
    device = str(usable_device(device))
    environment = {**child_environment(folder, device), "nnUNet_raw": str(raw.parent)}
    predictions = folder / "predictions" / f"{raw.name}_images{part}"
    shutil.rmtree(predictions, ignore_errors=True)  # an earlier run must not be scored in place of this one

    print(f"Data set: {raw.name}, {number_of_training_cases} training cases, {len(cases)} cases to predict.")
    if part == "Tr":
        print(
            "NOTE: The data set has no test cases with labels (imagesTs and labelsTs), so the TRAINING images are "
            "predicted: the Dice below is not that of unseen cases."
        )
    print(f"Device: {device}. To repeat a command by hand, set nnU-Net's folders in the environment first:")
    for name in FOLDERS:
        print(f"  {name}={environment[name]}")

    fold = folder / "nnUNet_results" / raw.name / f"{trainer}__{plans}__{CONFIGURATION}" / "fold_all"
    preprocessed = folder / "nnUNet_preprocessed" / raw.name
    commands = build_commands(raw, part, predictions, device, trainer, planner, plans)
    steps = {
        "preprocess": ("Plan and preprocess", FileProgress(number_of_training_cases, preprocessed, "*/*.pkl")),
        "train": ("Train", EpochProgress(fold / "debug.json")),
        "predict": ("Predict", FileProgress(len(cases), predictions, f"*{ending}")),
        "evaluate": ("Compare with the ground truth", Progress()),
    }
    seconds = {}
    for number, (name, (title, progress)) in enumerate(steps.items(), start=1):
        print(f"\nStep {number} of {len(steps)}: {title} (begins at {duration(time.monotonic() - begin)})", flush=True)
        # nnU-Net's planner takes this for its number of threads, which cannot be the 0 that is best for training.
        changes = {"nnUNet_n_proc_DA": "1"} if name == "preprocess" else {}
        log = folder / "logs" / f"{name}.log"
        seconds[name] = run_step(commands[name], log, {**environment, **changes}, progress)

    dice, dice_of_case = _read_summary(predictions / "summary.json", dataset_json["labels"])
    mean_dice = float(pd.Series(dice).mean())
    picture = _draw(raw, part, predictions, dataset_json, dice_of_case, folder / "demo.png")

    result = DemoResult(folder, dice, mean_dice, part == "Ts", predictions, picture, seconds)
    _report(result, len(cases), time.monotonic() - begin)
    return result


def _report(result: DemoResult, number_of_cases: int, seconds: float) -> None:
    """Print what was reached, and what to try next."""
    cases = "unseen test cases" if result.unseen else "TRAINING cases (not unseen)"
    print(f"\nMean Dice over {number_of_cases} {cases}:")
    width = max(len(name) for name in [*result.dice, "mean"])
    for name, value in [*result.dice.items(), ("mean", result.mean_dice)]:
        print(f"  {name:<{width}}  {value:.3f}")
    print(f"\nPicture:     {result.picture}\nPredictions: {result.predictions}\nTotal time:  {duration(seconds)}")
    print(
        "\nTry next:\n"
        "  nnunet-din demo other_folder --data /path/to/DatasetXXX_Name\n"
        "and, on a GPU, the network of the paper on a data set of yours in nnUNet_raw:\n"
        "  nnUNetv2_plan_and_preprocess -d XXX -pl nnUNetPlannerDIN -c 2d\n"
        "  nnUNetv2_train XXX 2d 0 -tr nnUNetTrainerDIN -p nnUNetDINPlans\n"
        "  nnUNetv2_predict -d XXX -i IMAGES -o OUTPUT -c 2d -tr nnUNetTrainerDIN -p nnUNetDINPlans -f 0",
        flush=True,
    )


def build_commands(
    raw: Path, part: str, predictions: Path, device: str, trainer: str, planner: str, plans: str
) -> dict[str, list[str]]:
    """Build nnU-Net's commands for the four steps.

    Parameters
    ----------
    raw : pathlib.Path
        Raw data set, called DatasetXXX_Name.
    part : {"Tr", "Ts"}
        Which images to predict.
    predictions : pathlib.Path
        Where the predictions go.
    device, trainer, planner, plans : str
        As in `run_demo`.

    Returns
    -------
    dict of str to list of str
        Command and arguments of the steps "preprocess", "train", "predict" and "evaluate", in this order.
    """
    number = str(int(raw.name[7:10]))
    model = ["-tr", trainer, "-p", plans]
    return {
        # --clean: a fingerprint of an earlier run may be of another data set.
        "preprocess": [
            "nnUNetv2_plan_and_preprocess", "-d", number, "-pl", planner, "-c", CONFIGURATION,
            "--verify_dataset_integrity", "--clean", "-np", "1", "-npfp", "1", "--no_pbar",
        ],
        "train": ["nnUNetv2_train", number, CONFIGURATION, "all", *model, "-device", device],
        # 0 workers: nnU-Net works in the process itself, which saves loading torch twice more.
        "predict": [
            "nnUNetv2_predict", "-d", number, "-i", str(raw / f"images{part}"), "-o", str(predictions),
            "-c", CONFIGURATION, *model, "-f", "all", "-device", device,
            "-npp", "0", "-nps", "0", "--disable_progress_bar",
        ],
        "evaluate": [
            "nnUNetv2_evaluate_folder", str(raw / f"labels{part}"), str(predictions),
            "-djfile", str(predictions / "dataset.json"), "-pfile", str(predictions / "plans.json"), "-np", "1",
        ],
    }  # fmt: skip


def _prepare_dataset(folder: Path, data: Path | None, seed: int) -> Path:
    """Make the folders, and draw the phantom if there are no data; returns the raw data set."""
    if seed < 0:
        raise ValueError(f"The seed must be 0 or more, not {seed}.")
    raw = folder / "nnUNet_raw" / PHANTOM if data is None else Path(os.path.abspath(data))
    if not re.fullmatch(r"Dataset\d{3}_.+", raw.name):
        raise ValueError(f"{raw} must be called DatasetXXX_Name with three digits, for example Dataset027_ACDC.")
    if data is not None:
        read_dataset_json(raw / "dataset.json")  # before anything is written
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    return raw if data is not None else write_dataset(raw, seed=seed)


def _list_cases(images: Path, ending: str) -> list[str]:
    """Names of the cases in a folder of images, which are called CASE_0000 for the first channel and so on."""
    return sorted(path.name[: -len("_0000" + ending)] for path in images.glob(f"*_0000{ending}"))


def _part_to_predict(raw: Path, ending: str) -> str:
    """The test images, "Ts", if each of them has a label map, else the training images, "Tr"."""
    images = _list_cases(raw / "imagesTs", ending)
    labels = sorted(path.name.removesuffix(ending) for path in (raw / "labelsTs").glob(f"*{ending}"))
    return "Ts" if images and images == labels else "Tr"


def _read_summary(path: Path, labels: Mapping[str, int | list[int]]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean Dice of each structure, and of each case over its structures, from nnU-Net's `summary.json`."""
    summary = read_json(path)
    # nnU-Net names a structure by its label, or by the tuple of labels that make up a region.
    keys = {name: str(tuple(value)) if isinstance(value, list) else str(value) for name, value in labels.items()}
    dice = {name: float(summary["mean"][key]["Dice"]) for name, key in keys.items() if key in summary["mean"]}
    of_cases = {
        Path(case["prediction_file"]).name: float(pd.DataFrame(case["metrics"].values())["Dice"].mean())
        for case in summary["metric_per_case"]
    }
    return dice, of_cases


def _draw(
    raw: Path,
    part: str,
    predictions: Path,
    dataset_json: dict,
    dice_of_case: Mapping[str, float],
    picture: Path,
) -> Path:
    """Draw the cases of highest, median and lowest Dice, each by the slice that shows most."""
    from nnunet_din.data.images import read_case, read_label_map
    from nnunet_din.nnunet.images import channel_files
    from nnunet_din.nnunet.planned import PlannedModel
    from nnunet_din.plotting.panel import panel
    from nnunet_din.plotting.selection import largest_slice
    from nnunet_din.plotting.style import save_figure

    model = PlannedModel.read(predictions / "plans.json", predictions / "dataset.json", CONFIGURATION)
    ending = dataset_json["file_ending"]
    ranked = sorted(dice_of_case, key=lambda name: -np.nan_to_num(dice_of_case[name]))
    chosen = {ranked[-1]: "worst", ranked[len(ranked) // 2]: "median", ranked[0]: "best"}
    rows = []
    for name, word in reversed(chosen.items()):
        case = name.removesuffix(ending)
        files = channel_files(raw / f"images{part}" / f"{case}_0000{ending}", model.channels, ending)
        image = read_case(files, model.reader)
        enhanced = model.enhanced_on_image_grid(*model.preprocess(files))[0]
        # The first channel, or the mean of the colours.
        gray, enhanced = (a.mean(axis=0) if image.color else a[0] for a in (image.array, enhanced))
        truth = read_label_map(raw / f"labels{part}" / name, model.reader)
        prediction = read_label_map(predictions / name, model.reader)
        index = largest_slice(truth)
        pictures = {"image": gray, "enhanced": enhanced, "prediction": prediction, "truth": truth}
        title = f"{case}: {word} of {len(ranked)}, Dice {dice_of_case[name]:.2f}"
        rows.append({"name": title, **{what: volume[index] for what, volume in pictures.items()}})
    return save_figure(panel(rows, label_names(dataset_json)), picture)
