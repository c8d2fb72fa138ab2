"""What nnU-Net notes about a training: the one reader of its text logs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from nnunet_din.data.files import read_json

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
_NUMBER = r"(-?(?:\d+\.?\d*(?:e[+-]?\d+)?|inf)|nan)"
#: What a line of the text log can say -> its pattern. An epoch begins with "epoch" and ends with "seconds".
_PATTERNS = {
    "epoch": re.compile(r"\bEpoch (\d+)\s*$"),
    # nnU-Net's line has five decimals; that of DIN's trainers follows it.
    "learning_rate": re.compile(rf"(?:Current|Exact) learning rate: {_NUMBER}"),
    "train_loss": re.compile(rf"\btrain_loss {_NUMBER}"),
    "val_loss": re.compile(rf"\bval_loss {_NUMBER}"),
    "mean_dice": re.compile(r"Pseudo dice \[(.*)\]"),
    "seconds": re.compile(rf"Epoch time: {_NUMBER} s"),
    "peak_memory_gb": re.compile(rf"Peak GPU memory: {_NUMBER} GB"),
}


def read_line(line: str) -> tuple[str, float] | None:
    """What a line of nnU-Net's text log, or of what it prints, says about the training.

    Returns
    -------
    tuple of str and float, or None
        One of `epoch` (its number, at its beginning), `learning_rate`, `train_loss`, `val_loss`, `mean_dice` (over the
        structures, 0 to 1, NaN if no patch showed any), `seconds` (of an epoch, at its end) and `peak_memory_gb`, with
        its value. None: nothing of these.
    """
    for key, pattern in _PATTERNS.items():
        if match := pattern.search(line):
            return key, _mean_of_structures(match[1]) if key == "mean_dice" else float(match[1])
    return None


def _mean_of_structures(text: str) -> float:
    # A value is printed as 0.81, np.float32(0.81) or nan for a structure that no patch showed.
    texts = re.sub(r"np\.float\d+\(|\)", "", text).split(",")
    dice = np.array([float(text) for text in texts if text.strip()])
    return float(np.nanmean(dice)) if np.isfinite(dice).any() else np.nan


def _notes(folder: Path) -> Iterator[list[tuple[str, float]]]:
    """What each text log of a fold says, the oldest log first; see :func:`read_line`."""
    logs = sorted(folder.glob("training_log_*.txt"), key=lambda path: [int(n) for n in re.findall(r"\d+", path.stem)])
    for log in logs:
        with log.open(encoding="utf-8", errors="replace") as lines:
            yield [*filter(None, map(read_line, lines))]


def read_costs(folder: Path) -> tuple[list[float], list[float]]:
    """Seconds of every epoch, and every note of the peak GPU memory in GB, in the text logs of a fold."""
    notes = [note for log in _notes(folder) for note in log]
    seconds, memory = ([value for key, value in notes if key == wanted] for wanted in ("seconds", "peak_memory_gb"))
    return seconds, memory


def epochs_begun(folder: Path) -> int:
    """The highest number of an epoch in the text logs of a fold; epochs count from 0, so that as many were finished."""
    return max((int(value) for log in _notes(folder) for key, value in log if key == "epoch"), default=0)


def number_of_epochs(debug_file: Path) -> int | None:
    """How many epochs a training is to have, from the ``debug.json`` of its fold, which nnU-Net writes before the first
    one; None: not known.
    """
    try:
        return int(read_json(debug_file)["num_epochs"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_training(folder: Path) -> dict[str, np.ndarray]:
    """What nnU-Net has noted about the training of a fold.

    The text logs are read, because they are complete at every moment. A resumed training has several; the epochs of a
    later one replace those of earlier ones from its first epoch on. nnU-Net's text has five decimals of the learning
    rate, that of DIN's trainers all of them. Only without text logs a checkpoint is opened.

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
    ValueError
        If there are no text logs, and the checkpoint cannot be read or holds more than nnU-Net's trainers write.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder.")
    epochs: dict[int, dict[str, float]] = {}
    for log in _notes(folder):
        _add_epochs(log, epochs)
    epochs = epochs or _read_checkpoint(folder)
    if not epochs:
        raise FileNotFoundError(
            f"{folder} holds no finished epoch: neither in a training_log_*.txt nor in a checkpoint of nnU-Net."
        )
    keys = ("train_loss", "val_loss", "mean_dice", "learning_rate", "seconds")
    order = sorted(epochs)
    training = {key: np.array([epochs[epoch].get(key, np.nan) for epoch in order]) for key in keys}
    training["epoch"] = np.array(order)
    training["hours"] = np.nancumsum(training.pop("seconds")) / 3600
    from pandas import Series

    average = Series(training["mean_dice"]).ewm(alpha=0.1, adjust=False, ignore_na=True).mean()
    training["dice"] = average.to_numpy()
    return training


def _add_epochs(log: Iterable[tuple[str, float]], epochs: dict[int, dict[str, float]]) -> None:
    """Add the finished epochs of a log to those of earlier logs; what it repeats, and what came after that, goes."""
    number: int | None = None
    values: dict[str, float] = {}
    for key, value in log:
        if key == "epoch":
            number, values = int(value), {}
        values[key] = value
        if key == "seconds" and number is not None:
            for later in [epoch for epoch in epochs if epoch >= number]:
                del epochs[later]
            epochs[number], number = values, None


def _read_checkpoint(folder: Path) -> dict[int, dict[str, float]]:
    """Read the epochs that the newest checkpoint knows; there are none without a checkpoint."""
    paths = [folder / name for name in CHECKPOINTS if (folder / name).is_file()]
    if not paths:
        return {}
    path = max(paths, key=lambda path: path.stat().st_mtime)
    from nnunet_din.data.weight_files import read_checkpoint  # loads torch

    content = read_checkpoint(path)
    if not isinstance(content, dict) or "logging" not in content:
        raise ValueError(f"{path} is no checkpoint of nnU-Net: it has no `logging`.")
    logging = content["logging"]
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
