"""``nnunet-din curves``: how several models were trained, read from nnU-Net's own logs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from nnunet_din.arguments import (
    add_picture,
    add_trained_models,
    check_output,
    chosen_models,
    fold_folders,
    named_path,
)
from nnunet_din.visualization import save_figure, training_curves

__all__ = ["add_parser", "read_training", "run"]

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")

_DPI = 300
_NUMBER = r"(-?(?:\d+\.?\d*(?:e[+-]?\d+)?|inf)|nan)"
_EPOCH_END = re.compile(rf": Epoch time: {_NUMBER} s")
_EPOCH = re.compile(r": Epoch (\d+)\s*$")
_VALUES = {
    "learning_rate": re.compile(rf": Current learning rate: {_NUMBER}"),
    "train_loss": re.compile(rf": train_loss {_NUMBER}"),
    "val_loss": re.compile(rf": val_loss {_NUMBER}"),
}
_DICE = re.compile(r": Pseudo dice \[(.*)\]")


def add_parser(subparsers) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        "curves",
        help="draw the training curves of several models",
        description="Training and validation loss, pseudo Dice (as nnU-Net smooths it) and learning rate of several "
        "models in one picture, from the logs in the folders of their folds. Works while a training runs.",
    )
    parser.add_argument(
        "folders",
        nargs="*",
        metavar="NAME=FOLD_FOLDER",
        help="folder of a fold; the same name again: another fold of that model",
    )
    add_trained_models(parser.add_argument_group("or models that nnU-Net has trained"))
    parser.add_argument(
        "--against",
        choices=("epoch", "time"),
        default="epoch",
        help="horizontal axis; time is the sum of the epochs' durations, without pauses (default: %(default)s)",
    )
    add_picture(parser, "curves.png")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw the curves."""
    check_output(args.output)
    if (args.dataset is None) == (not args.folders):
        raise ValueError("Give either -d with the number of a data set, or NAME=FOLD_FOLDER.")
    if args.folders and (args.folds or args.models):
        raise ValueError("--models and -f go with -d, not with NAME=FOLD_FOLDER.")
    folders: dict[str, list[Path]] = {}
    for name, folder in (named_path(text, "curves") for text in args.folders):
        folders.setdefault(name, []).append(folder)
    if args.dataset is not None:
        for name, model in chosen_models(args.dataset, args.models).items():
            folders[name] = list(fold_folders(model, args.folds).values())
            if not folders[name]:
                raise FileNotFoundError(f"{model.folder} has no numbered fold: name one with -f, for example all.")
    models = {name: [read_training(folder) for folder in of_model] for name, of_model in folders.items()}
    for name, folds in models.items():
        print(f"{name}: " + ", ".join(f"{len(fold['epoch'])} epochs in {fold['hours'][-1]:.2f} h" for fold in folds))
    save_figure(training_curves(models, args.against), args.output, dpi=_DPI)
    print(f"Wrote {args.output}")
    return 0


def read_training(folder: Path) -> dict[str, np.ndarray]:
    """What nnU-Net has noted about the training of a fold.

    The text logs are read, because they are complete at every moment. A resumed training has several; the epochs of a
    later one replace those of earlier ones from its first epoch on. The text has only five digits of the learning
    rate; the exact values are taken from a checkpoint where they agree with it. Without text logs everything comes
    from a checkpoint.

    Parameters
    ----------
    folder
        Folder of a fold with `training_log_*.txt` or checkpoints.

    Returns
    -------
    dict of str to numpy.ndarray
        The finished epochs: `epoch`, `hours` (sum of the durations until the end of the epoch), `train_loss`,
        `val_loss`, `mean_dice` (mean foreground Dice on random patches, 0 to 1), `dice` (its moving average with weight
        0.1 for the new value, as nnU-Net's; an epoch without a value does not change it), and `learning_rate`. NaN: not
        known.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist, or neither a log nor a checkpoint in it holds a finished epoch.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder.")
    logs = sorted(folder.glob("training_log_*.txt"), key=lambda path: [int(n) for n in re.findall(r"\d+", path.stem)])
    epochs: dict[int, dict[str, float]] = {}
    for log in logs:
        with log.open(encoding="utf-8", errors="replace") as lines:
            _read_log(lines, epochs)
    exact = _read_checkpoint(folder)
    if not epochs:
        epochs = exact
    if not epochs:
        raise FileNotFoundError(
            f"{folder} holds no finished epoch: neither in a training_log_*.txt nor in a checkpoint of nnU-Net."
        )
    for epoch, values in exact.items():
        logged = epochs.get(epoch, {}).get("learning_rate", np.nan)
        if abs(values["learning_rate"] - logged) <= 0.51e-5:
            epochs[epoch]["learning_rate"] = values["learning_rate"]
    keys = ("train_loss", "val_loss", "mean_dice", "learning_rate", "seconds")
    order = sorted(epochs)
    training = {key: np.array([epochs[epoch].get(key, np.nan) for epoch in order]) for key in keys}
    training["epoch"] = np.array(order)
    training["hours"] = np.nancumsum(training.pop("seconds")) / 3600
    training["dice"] = _moving_average(training["mean_dice"])
    return training


def _read_log(lines: Iterable[str], epochs: dict[int, dict[str, float]]) -> None:
    """Add the finished epochs of a log to those of earlier logs; what it repeats, and what came after that, goes."""
    number, values = None, {}
    for line in lines:
        if match := _EPOCH.search(line):
            number, values = int(match[1]), {}
        elif match := _DICE.search(line):
            # A value is printed as 0.81, np.float32(0.81) or nan for a structure that no patch showed.
            texts = re.sub(r"np\.float\d+\(|\)", "", match[1]).split(",")
            dice = np.array([float(text) for text in texts if text.strip()])
            values["mean_dice"] = float(np.nanmean(dice)) if np.isfinite(dice).any() else np.nan
        elif match := _EPOCH_END.search(line):
            if number is not None:
                for later in [epoch for epoch in epochs if epoch >= number]:
                    del epochs[later]
                epochs[number] = {**values, "seconds": float(match[1])}
                number = None
        else:
            for key, pattern in _VALUES.items():
                if match := pattern.search(line):
                    values[key] = float(match[1])


def _read_checkpoint(folder: Path) -> dict[int, dict[str, float]]:
    """The epochs that the newest checkpoint knows; empty without one."""
    path = max(
        (folder / n for n in CHECKPOINTS if (folder / n).is_file()), key=lambda p: p.stat().st_mtime, default=None
    )
    if path is None:
        return {}
    import torch

    try:
        # Mapped into memory, of which the weights are never read. nnU-Net's checkpoints hold numpy's numbers.
        logging = torch.load(path, map_location="cpu", weights_only=False, mmap=True)["logging"]
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint of nnU-Net: {error}") from error
    columns = {
        "learning_rate": logging["lrs"],
        "train_loss": logging["train_losses"],
        "val_loss": logging["val_losses"],
        "mean_dice": logging["mean_fg_dice"],
        "start": logging["epoch_start_timestamps"],
        "end": logging["epoch_end_timestamps"],
    }
    rows = [dict(zip(columns, map(float, row), strict=True)) for row in zip(*columns.values(), strict=False)]
    return {epoch: {**row, "seconds": row["end"] - row["start"]} for epoch, row in enumerate(rows)}


def _moving_average(values: np.ndarray) -> np.ndarray:
    average, averages = np.nan, []
    for value in values:
        if np.isnan(average):
            average = value
        elif not np.isnan(value):
            average = 0.9 * average + 0.1 * value
        averages.append(average)
    return np.array(averages)
