"""``nnunet-din demo``: from raw data to segmented test cases with nnU-Net's own commands, in a few minutes.

The demo needs no download: it draws its own data set, a phantom of cardiac MR. Every command is printed before it runs,
so that the demo can be repeated by hand.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_din.data import write_dataset
from nnunet_din.visualization import label_names as _label_names

__all__ = ["DemoError", "DemoResult", "add_parser", "run", "run_demo"]

PHANTOM = "Dataset999_CardiacPhantom"
CONFIGURATION = "2d"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")

_LOG_TAIL = 25  # lines
_POLL = 0.5  # s


class DemoError(RuntimeError):
    """The demo cannot go on; the message is one sentence for the user."""


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


class _Progress:
    """What a running command has done so far; this one knows nothing and shows the time only."""

    unit = ""
    total: int | None = None

    def read(self, line: str) -> str | None:
        """Take in a line of the command's output; returns a message if the line says something worth telling."""

    def count(self) -> int:
        """How many units are done."""
        return 0


class _FileProgress(_Progress):
    """Counts the files that a command writes for each case."""

    unit = "cases"

    def __init__(self, total: int, folder: Path, pattern: str):
        self.total = total
        self.folder = folder
        self.pattern = pattern
        # Files of an earlier run do not count until they are written again.
        self.start = time.time()

    def count(self) -> int:
        written = [path for path in self.folder.glob(self.pattern) if path.stat().st_mtime >= self.start]
        return min(len(written), self.total)


class _EpochProgress(_Progress):
    """Reads the lines that nnU-Net's trainer prints about each epoch."""

    unit = "epochs"

    def __init__(self, debug_file: Path):
        self.debug_file = debug_file
        self.epoch = 0
        self.done = 0
        self.dice: float | None = None

    def read(self, line: str) -> str | None:
        if match := re.search(r"\bEpoch (\d+)\s*$", line):
            self.epoch = int(match[1])
            if self.total is None:
                self.total = self._number_of_epochs()
        elif match := re.search(r"Pseudo dice (\[.*\])", line):
            # Each value is printed as 0.81, np.float32(0.81), or nan for a structure that no patch showed.
            values = [float(value) for value in re.findall(r"\d+\.\d+|\d+e-\d+", match[1])]
            self.dice = sum(values) / len(values) if values else math.nan
        elif match := re.search(r"Epoch time: ([\d.]+) s", line):
            self.done = self.epoch + 1
            dice = "" if self.dice is None else f", Dice on random patches about {self.dice:.2f}"
            return f"epoch {self.done} of {self.total or '?'}: {float(match[1]):.0f} s{dice}"
        elif "Training done" in line:
            return "training done, finishing"
        return None

    def count(self) -> int:
        return self.done

    def _number_of_epochs(self) -> int | None:
        # nnU-Net does not print the number of epochs, but notes it here before the first one.
        try:
            return int(json.loads(self.debug_file.read_text(encoding="utf-8"))["num_epochs"])
        except (OSError, ValueError, KeyError):
            return None


def add_parser(subparsers) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        "demo",
        help="train and test DIN on a small synthetic data set",
        description="Draw a synthetic cardiac MR data set, then plan, train, predict and evaluate DIN on it with "
        "nnU-Net's own commands. Takes a few minutes on two CPU cores and needs no download.",
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("nnunet_din_demo"),
        metavar="FOLDER",
        help="where to write (default: %(default)s)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="RAW_FOLDER",
        help="raw nnU-Net data set DatasetXXX_Name to use instead of the phantom; it is only read",
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda", "mps"), help="where to train and predict (default: a GPU if there is one)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the phantom (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo; 1 if it failed, 130 if it was interrupted."""
    try:
        run_demo(args.folder, data=args.data, device=args.device, seed=args.seed)
    except DemoError as error:
        print(f"nnunet-din demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nnnunet-din demo: stopped; what was computed so far is in {args.folder}.", file=sys.stderr)
        return 130
    return 0


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
        Raw nnU-Net data set to use, a folder called DatasetXXX_Name. It is linked into `folder` and never written to.
        By default the phantom is drawn.
    device : {"cpu", "cuda", "mps"}, optional
        Where to train and predict. By default CUDA if present, else Apple's GPU, else the CPU.
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
    DemoError
        If the data set cannot be used, a command is not installed, or a command fails. Results of earlier steps stay.
    """
    begin = time.monotonic()
    if seed < 0:
        raise DemoError(f"The seed must be 0 or more, not {seed}.")
    folder = Path(os.path.abspath(folder))
    raw = _prepare_dataset(folder, data, seed)
    dataset_json = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    ending = dataset_json["file_ending"]
    part, reason = _cases_to_predict(raw, ending)
    cases = _list_cases(raw / f"images{part}", ending)
    number_of_training_cases = len(_list_cases(raw / "imagesTr", ending))
    device = device or _best_device()
    environment = child_environment(folder, device)
    predictions = folder / "predictions" / f"{raw.name}_images{part}"
    # An earlier run must not be scored in place of this one.
    for name in [*(case + ending for case in cases), "summary.json"]:
        (predictions / name).unlink(missing_ok=True)

    print(f"Data set: {raw.name}, {number_of_training_cases} training cases, {len(cases)} cases to predict.")
    if reason:
        print(f"NOTE: {reason}, so the TRAINING images are predicted: the Dice below is not that of unseen cases.")
    print(f"Device: {device}. To repeat a command by hand, set nnU-Net's folders first:")
    for name in FOLDERS:
        print(f"  export {name}={shlex.quote(environment[name])}")

    fold = folder / "nnUNet_results" / raw.name / f"{trainer}__{plans}__{CONFIGURATION}" / "fold_all"
    preprocessed = folder / "nnUNet_preprocessed" / raw.name
    commands = build_commands(raw, part, predictions, device, trainer, planner, plans)
    steps = {
        "preprocess": ("Plan and preprocess", _FileProgress(number_of_training_cases, preprocessed, "*/*.pkl")),
        "train": ("Train", _EpochProgress(fold / "debug.json")),
        "predict": ("Predict", _FileProgress(len(cases), predictions, f"*{ending}")),
        "evaluate": ("Compare with the ground truth", _Progress()),
    }
    seconds = {}
    for number, (name, (title, progress)) in enumerate(steps.items(), start=1):
        print(f"\nStep {number} of {len(steps)}: {title} (begins at {_duration(time.monotonic() - begin)})", flush=True)
        # nnU-Net's planner takes this for its number of threads, which cannot be the 0 that is best for training.
        changes = {"nnUNet_n_proc_DA": "1"} if name == "preprocess" else {}
        log = folder / "logs" / f"{name}.log"
        seconds[name] = run_step(commands[name], log, {**environment, **changes}, progress)

    dice, dice_of_case = _read_summary(predictions / "summary.json", dataset_json["labels"])
    mean_dice = float(np.nanmean(list(dice.values())))
    picture = _draw(raw, part, predictions, ending, dataset_json, dice_of_case, folder / "demo.png")

    print(f"\nMean Dice over {len(cases)} {'unseen test cases' if part == 'Ts' else 'TRAINING cases (not unseen)'}:")
    width = max(len(name) for name in [*dice, "mean"])
    for name, value in [*dice.items(), ("mean", mean_dice)]:
        print(f"  {name:<{width}}  {value:.3f}")
    print(f"\nPicture:     {picture}\nPredictions: {predictions}\nTotal time:  {_duration(time.monotonic() - begin)}")
    print(
        "\nTry next:\n"
        "  nnunet-din demo other_folder --data /path/to/DatasetXXX_Name\n"
        "and, on a GPU, the network of the paper on a data set of yours in nnUNet_raw:\n"
        "  nnUNetv2_plan_and_preprocess -d XXX -pl nnUNetPlannerDIN -c 2d\n"
        "  nnUNetv2_train XXX 2d 0 -tr nnUNetTrainerDIN -p nnUNetDINPlans\n"
        "  nnUNetv2_predict -d XXX -i IMAGES -o OUTPUT -c 2d -tr nnUNetTrainerDIN -p nnUNetDINPlans -f 0",
        flush=True,
    )
    return DemoResult(folder, dice, mean_dice, part == "Ts", predictions, picture, seconds)


def child_environment(folder: Path, device: str) -> dict[str, str]:
    """Environment of nnU-Net's commands.

    Parameters
    ----------
    folder : pathlib.Path
        The demo's folder.
    device : str
        Where the commands compute. On "cpu" few workers are started, because each loads torch anew; values that the
        user has set win.

    Returns
    -------
    dict of str to str
        This process's environment with nnU-Net's settings.
    """
    environment = {**os.environ, **{name: str(folder / name) for name in FOLDERS}, "PYTHONUNBUFFERED": "1"}
    if device == "cpu":
        environment.setdefault("nnUNet_def_n_proc", "1")
        environment.setdefault("nnUNet_n_proc_DA", "0")
        # Threads that spin while they wait slow training down several times as soon as anything else wants a core.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return environment


def build_commands(
    raw: Path, part: str, predictions: Path, device: str, trainer: str, planner: str, plans: str
) -> dict[str, list[str]]:
    """nnU-Net's commands for the four steps.

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


def find_command(name: str) -> str:
    """Path of one of nnU-Net's commands, beside this Python if it is there, else on the PATH.

    Raises
    ------
    DemoError
        If the command is in neither place.
    """
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise DemoError(f"The command {name} is not installed; install nnU-Net with `pip install nnunetv2`.")
    return found


def run_step(
    command: Sequence[str], log: Path, environment: dict[str, str], progress: _Progress | None = None
) -> float:
    """Run one command, write its output to a log and show how far it is.

    Parameters
    ----------
    command : sequence of str
        Name of the command and its arguments.
    log : pathlib.Path
        File for everything that the command prints; made anew.
    environment : dict of str to str
        The command's environment.
    progress : _Progress, optional
        Tells how far the command is. By default only the time is shown.

    Returns
    -------
    float
        Duration in s.

    Raises
    ------
    DemoError
        If the command is not installed or fails; the end of its log has been printed then.
    """
    from tqdm import tqdm

    progress = progress or _Progress()
    print(f"  $ {shlex.join(command)}", flush=True)
    executable = find_command(command[0])
    log.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    live = sys.stdout.isatty()
    counted = "{bar:24} {n_fmt}/{total_fmt} {unit} " if progress.unit else ""
    with log.open("wb") as output, log.open(encoding="utf-8", errors="replace") as lines:
        bar = tqdm(
            total=progress.total,
            unit=progress.unit,
            file=sys.stdout,
            disable=not live,
            leave=False,
            bar_format=f"  {counted}[{{elapsed}}]{{postfix}}",
        )
        process = subprocess.Popen(
            [executable, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        with bar, process:
            try:
                running, rest = True, ""
                while running:
                    try:
                        process.wait(timeout=_POLL)
                        running = False
                    except subprocess.TimeoutExpired:
                        pass
                    *complete, rest = (rest + lines.read()).split("\n")
                    for message in filter(None, map(progress.read, complete)):
                        if live:
                            bar.set_postfix_str(message, refresh=False)
                        else:
                            print(f"  {message}", flush=True)
                    bar.total, bar.n = progress.total, progress.count()
                    bar.refresh()
            except BaseException:
                process.terminate()
                raise
    seconds = time.monotonic() - begin
    if process.returncode != 0:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL:]
        print(f"  failed after {_duration(seconds)}. The last lines of {log}:", flush=True)
        print("\n".join(f"  | {line}" for line in tail), flush=True)
        raise DemoError(f"{command[0]} failed with exit code {process.returncode}; its whole output is in {log}.")
    print(f"  done in {_duration(seconds)}, log: {log}", flush=True)
    return seconds


def _duration(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _prepare_dataset(folder: Path, data: Path | None, seed: int) -> Path:
    """Put the data set into the demo's `nnUNet_raw`; returns its folder there."""
    source = None if data is None else Path(os.path.abspath(data))
    if source is not None:
        _check_dataset(source)
    if folder.exists() and not folder.is_dir():
        raise DemoError(f"{folder} is a file; choose another folder.")
    name = PHANTOM if source is None else source.name
    for parent in FOLDERS:
        (folder / parent).mkdir(parents=True, exist_ok=True)
        for other in (folder / parent).glob(f"{name[:10]}*"):
            # nnU-Net refuses to work when two data sets have the same number.
            if other.name != name:
                raise DemoError(
                    f"{folder / parent} already holds {other.name}, which has the same number as {name}; "
                    "choose another folder."
                )
    target = folder / "nnUNet_raw" / name
    if source is None:
        if target.is_symlink():
            raise DemoError(f"{target} is a link to other data; choose another folder.")
        try:
            return write_dataset(target, seed=seed)
        except FileExistsError as error:
            raise DemoError(f"{error}; choose another folder.") from error
    if target.exists() and target.resolve() == source.resolve():
        return target
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        raise DemoError(f"{target} already holds a data set of that name; choose another folder.")
    try:
        target.symlink_to(source, target_is_directory=True)
    except OSError:
        # Windows allows links to few users only.
        shutil.copytree(source, target)
    return target


def _check_dataset(data: Path) -> None:
    if not data.is_dir():
        raise DemoError(f"{data} is not a folder.")
    if not re.fullmatch(r"Dataset\d{3}_.+", data.name):
        raise DemoError(f"{data} must be called DatasetXXX_Name with three digits, for example Dataset027_ACDC.")
    if not (data / "dataset.json").is_file():
        raise DemoError(f"{data} has no dataset.json, so it is not a raw nnU-Net data set.")
    for name in ("imagesTr", "labelsTr"):
        if not (data / name).is_dir():
            raise DemoError(f"{data} has no folder {name}, so it is not a raw nnU-Net data set.")
    try:
        description = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise DemoError(f"{data / 'dataset.json'} is not valid JSON: {error}.") from error
    missing = [key for key in ("labels", "file_ending") if key not in description]
    if missing:
        raise DemoError(f"{data / 'dataset.json'} has no entry {' and no entry '.join(missing)}.")
    if not _list_cases(data / "imagesTr", description["file_ending"]):
        raise DemoError(f"{data / 'imagesTr'} holds no image called CASE_0000{description['file_ending']}.")


def _list_cases(images: Path, ending: str) -> list[str]:
    """Names of the cases in a folder of images, which are called CASE_0000 for the first channel and so on."""
    return sorted(path.name[: -len("_0000" + ending)] for path in images.glob(f"*_0000{ending}"))


def _cases_to_predict(raw: Path, ending: str) -> tuple[str, str | None]:
    """Whether to predict the test images ("Ts") or the training images ("Tr"), and why not the test images."""
    if not (raw / "imagesTs").is_dir() or not (raw / "labelsTs").is_dir():
        return "Tr", "The data set has no test cases with labels (imagesTs and labelsTs)"
    images = _list_cases(raw / "imagesTs", ending)
    labels = sorted(path.name[: -len(ending)] for path in (raw / "labelsTs").glob(f"*{ending}"))
    if not images or images != labels:
        return "Tr", "The images in imagesTs and the labels in labelsTs are not of the same cases"
    return "Ts", None


def _read_summary(path: Path, labels: dict[str, int | list[int]]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean Dice of each structure, and of each case over its structures, from nnU-Net's `summary.json`."""
    summary = json.loads(path.read_text(encoding="utf-8"))
    # nnU-Net names a structure by its label, or by the tuple of labels that make up a region.
    keys = {name: str(tuple(value)) if isinstance(value, list) else str(value) for name, value in labels.items()}
    dice = {name: float(summary["mean"][key]["Dice"]) for name, key in keys.items() if key in summary["mean"]}
    dice_of_case = {}
    for case in summary["metric_per_case"]:
        values = [metrics["Dice"] for metrics in case["metrics"].values() if not math.isnan(metrics["Dice"])]
        dice_of_case[Path(case["prediction_file"]).name] = float(np.mean(values)) if values else math.nan
    return dice, dice_of_case


def _read_volume(path: Path) -> np.ndarray:
    """An image or label map as (Z, H, W); the colours of a photograph are averaged."""
    import SimpleITK

    image = SimpleITK.ReadImage(str(path))
    array = SimpleITK.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = array.mean(axis=-1)
    return array[None] if image.GetDimension() == 2 else array


def _draw(
    raw: Path,
    part: str,
    predictions: Path,
    ending: str,
    dataset_json: dict,
    dice_of_case: dict[str, float],
    picture: Path,
) -> Path:
    """Draw the cases of highest, median and lowest Dice, each by the slice that shows most."""
    from nnunet_din.enhancement import enhance_slices
    from nnunet_din.visualization import largest_slice, panel, save_figure

    plans = json.loads((predictions / "plans.json").read_text(encoding="utf-8"))
    parameters = {**plans["configurations"][CONFIGURATION].get("enhancement", {}), "color": False}
    ranked = sorted(dice_of_case, key=lambda name: -np.nan_to_num(dice_of_case[name]))
    places = {"best": 0, "median": len(ranked) // 2, "worst": len(ranked) - 1}
    chosen = {ranked[place]: word for word, place in reversed(places.items())}
    rows = []
    for name, word in reversed(chosen.items()):
        case = name[: -len(ending)]
        image = _read_volume(raw / f"images{part}" / f"{case}_0000{ending}").astype(np.float32)
        truth = _read_volume(raw / f"labels{part}" / name)
        index = largest_slice(truth)
        rows.append(
            {
                "name": f"{case}: {word} of {len(ranked)}, Dice {dice_of_case[name]:.2f}",
                "image": image[index],
                "enhanced": enhance_slices(image[None, index : index + 1], **parameters)[0, 0],
                "prediction": _read_volume(predictions / name)[index],
                "truth": truth[index],
            }
        )
    return save_figure(panel(rows, _label_names(dataset_json)), picture)
