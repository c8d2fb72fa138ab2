"""How far the trainings of a data set are: what nnU-Net's files and logs say, whoever has started them."""

from __future__ import annotations

import math
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_din.data.files import read_json
from nnunet_din.nnunet.folders import dataset_name, nnunet_folder
from nnunet_din.nnunet.models import find_models
from nnunet_din.nnunet.training_log import CHECKPOINTS, number_of_epochs, read_training
from nnunet_din.runs.commandline import last_lines
from nnunet_din.runs.crossval.locks import is_locked

#: How the last line of a step's log says that the step has failed.
FAILED = "FAILED"
#: Seconds after which a silent training is taken for interrupted where no step of ours holds its log.
_QUIET = 300.0
#: Seconds between what nnU-Net writes into its own log and into that of our step.
_TOGETHER = 10.0
#: Epochs over which the duration of one is averaged.
_RECENT = 5


@dataclass(frozen=True)
class FoldFiles:
    """What the training of a fold has left on the disk.

    Attributes
    ----------
    folder : pathlib.Path
        Folder of the fold.
    probabilities : bool
        Whether the validation must hold probabilities as well, which ensembles need.
    """

    folder: Path
    probabilities: bool = False

    def checkpoints(self) -> list[str]:
        """Names of the checkpoints that can be read, in the order in which nnU-Net goes on from them."""
        return [name for name in CHECKPOINTS if _is_whole(self.folder / name)]

    def damaged(self) -> list[Path]:
        """Checkpoints that are there and cannot be read."""
        paths = [self.folder / name for name in CHECKPOINTS]
        return [path for path in paths if path.is_file() and not _is_whole(path)]

    @property
    def summary(self) -> Path:
        """Scores of the validation, the last file that nnU-Net writes."""
        return self.folder / "validation" / "summary.json"

    def complete(self) -> bool:
        """Whether nothing is left to do."""
        try:
            cases = read_json(self.summary)["metric_per_case"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        validated = not self.probabilities or len(list(self.summary.parent.glob("*.npz"))) >= len(cases)
        return validated and _is_whole(self.folder / CHECKPOINTS[0])

    def logs(self) -> list[Path]:
        """nnU-Net's text logs."""
        return sorted(self.folder.glob("training_log_*.txt"))


def _is_whole(path: Path) -> bool:
    """Whether a checkpoint was written to its end, where the directory of a zip file is; nothing is loaded."""
    return path.is_file() and zipfile.is_zipfile(path)


@dataclass(frozen=True)
class FoldState:
    """How far a fold is.

    Attributes
    ----------
    model, fold : str
        Name of the model, and number of the fold.
    status : str
        ``done``, ``running``, ``validating``, ``failed``, ``interrupted`` or ``missing``.
    epoch : int
        Finished epochs.
    epochs : int or None
        How many it is to have; None: not known.
    dice : float
        nnU-Net's pseudo Dice of the last epoch, mean over the structures, 0 to 1; NaN: not known.
    seconds : float
        Recent duration of an epoch; NaN: not known.
    """

    model: str
    fold: str
    status: str
    epoch: int = 0
    epochs: int | None = None
    dice: float = math.nan
    seconds: float = math.nan

    @property
    def left(self) -> float:
        """Seconds until the last epoch ends; NaN: not known, or not running."""
        return (self.epochs - self.epoch) * self.seconds if self.epochs and self.status == "running" else math.nan


def fold_state(model: str, fold: str, files: FoldFiles, log: Path) -> FoldState:
    """How far a fold is, now.

    Parameters
    ----------
    model, fold
        What to call it.
    files
        Its folder.
    log
        Log of the step that trains it, which is there if this package does.
    """
    epoch, dice, seconds = _progress(files.folder)
    epochs = number_of_epochs(files.folder / "debug.json")
    if files.complete():
        status = "done"
    elif _is_running(files, log, seconds):
        status = "validating" if epochs is not None and epoch >= epochs else "running"
    elif has_failed(log):
        status = "failed"
    else:
        status = "interrupted" if files.logs() or files.checkpoints() else "missing"
    return FoldState(model, fold, status, epoch, epochs, dice, seconds)


def has_failed(log: Path) -> bool:
    """Whether a step has failed when it was run last, by its log."""
    return any(FAILED in line for line in last_lines(log, 1))


def _is_running(files: FoldFiles, log: Path, seconds: float) -> bool:
    newest = max((path.stat().st_mtime for path in files.logs()), default=-math.inf)
    with suppress(OSError):  # no step of ours has trained it, or its file system has no locks
        if log.stat().st_mtime > newest - _TOGETHER:
            return is_locked(log)
    # A training that was started by hand. NaN, in the second place, is passed over. A clock may be ahead.
    return abs(time.time() - newest) < max(_QUIET, 3 * seconds)


def _progress(folder: Path) -> tuple[int, float, float]:
    """Finished epochs, pseudo Dice of the last one and recent seconds per epoch."""
    try:
        training = read_training(folder)
    except (FileNotFoundError, ValueError):
        return 0, math.nan, math.nan
    hours = [0.0, *training["hours"].tolist()][-_RECENT - 1 :]
    seconds = 3600 * (hours[-1] - hours[0]) / (len(hours) - 1)
    return int(training["epoch"][-1]) + 1, float(training["mean_dice"][-1]), seconds


def table(states: Iterable[FoldState]) -> str:
    """A line a fold."""
    rows: list[tuple[str, ...]] = [("model", "fold", "state", "epoch", "pseudo Dice", "s/epoch", "left")]
    for state in states:
        epoch = f"{state.epoch}/{state.epochs or '?'}" if state.epoch or state.epochs else ""
        numbers = [("{:.3f}", state.dice), ("{:.1f}", state.seconds)]
        texts = ["" if math.isnan(number) else form.format(number) for form, number in numbers]
        left = "" if math.isnan(state.left) else duration(state.left)
        rows.append((state.model, state.fold, state.status, epoch, *texts, left))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def duration(seconds: float) -> str:
    """Hours and minutes."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def step_log(folder: Path, step: str) -> Path:
    """Output of a step's commands in a folder of cross-validation."""
    return folder / "logs" / f"{step.replace('/', '.')}.log"


def states(results: Path, models: Mapping[str, Mapping[str, Any]]) -> list[FoldState]:
    """How far every fold of some models is.

    Parameters
    ----------
    results
        Folder of a data set in nnU-Net's results.
    models
        Names of the folders of models -> ``name`` of the model, its ``folds``, and whether ensembles need its
        ``probabilities``, as in the configuration of the workflow.
    """
    return [
        fold_state(
            entry["name"],
            str(fold),
            FoldFiles(results / folder / f"fold_{fold}", entry["probabilities"]),
            step_log(results / "crossval", f"train/{folder}/fold_{fold}"),
        )
        for folder, entry in models.items()
        for fold in entry["folds"]
    ]


def states_of(dataset: str, models: Sequence[str] | None = None, folds: Sequence[str] | None = None) -> list[FoldState]:
    """How far every fold of a data set is, whoever trains it.

    Parameters
    ----------
    dataset
        Number or name of the data set.
    models
        Models to take, as ``[NAME=]TRAINER__PLANS__CONFIGURATION``. None: all that were begun, and those of the last
        cross-validation.
    folds
        Folds to take. None: those that were begun, and those of the last cross-validation.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such data set, or nothing of it.
    """
    results = nnunet_folder("nnUNet_results") / dataset_name(dataset)
    workflow = results / "crossval" / "crossval.json"
    known: dict[str, dict[str, Any]] = read_json(workflow).get("trainings", {}) if workflow.is_file() else {}
    for model in find_models(dataset):
        entry = known.setdefault(model.name, {"name": model.name, "folds": [], "probabilities": False})
        begun = [*map(str, entry["folds"]), *model.folds, *(["all"] if model.fold_folder("all") else [])]
        entry["folds"] = sorted(set(begun), key=lambda fold: (not fold.isdecimal(), fold.zfill(4)))
    if not known:
        raise FileNotFoundError(f"No training of {results.name} was begun.")
    chosen = {folder: name for name, _, folder in (text.rpartition("=") for text in models or known)}
    if unknown := [folder for folder in chosen if folder not in known]:
        raise ValueError(f"No model is called {unknown[0]}. There are: {', '.join(known)}.")
    wanted = {folder: {**known[folder], "folds": folds or known[folder]["folds"]} for folder in chosen}
    return states(results, {f: {**entry, "name": chosen[f] or entry["name"]} for f, entry in wanted.items()})
