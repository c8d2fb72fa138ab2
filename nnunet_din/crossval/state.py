"""How far the trainings of a data set are: what nnU-Net's files and logs say, whoever has started them."""

from __future__ import annotations

import math
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nnunet_din.data.files import read_json
from nnunet_din.nnunet.folders import dataset_name, nnunet_folder
from nnunet_din.nnunet.models import find_models
from nnunet_din.nnunet.training_log import CHECKPOINTS, number_of_epochs, read_training

#: Seconds without a sign after which a training is taken for interrupted: of one that was started by hand, which shows
#: its epochs only, and of a step of ours, which shows every few seconds that it is there.
QUIET, BEAT = 300.0, 10.0
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
        """The scores of the validation."""
        return self.folder / "validation" / "summary.json"

    def validated(self) -> bool:
        """Whether the validation is complete and can be read."""
        try:
            cases = read_json(self.summary)["metric_per_case"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return not self.probabilities or len(list(self.summary.parent.glob("*.npz"))) >= len(cases)

    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return _is_whole(self.folder / "checkpoint_final.pth") and self.validated()

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
    log : pathlib.Path or None
        Output of the commands, where they were run by this package.
    """

    model: str
    fold: str
    status: str
    epoch: int = 0
    epochs: int | None = None
    dice: float = math.nan
    seconds: float = math.nan
    log: Path | None = None

    @property
    def left(self) -> float:
        """Seconds until the last epoch ends; NaN: not known."""
        return math.nan if self.epochs is None else (self.epochs - self.epoch) * self.seconds

    def line(self) -> str:
        """One line of progress."""
        parts = [f"{self.model} fold {self.fold}: {self.status}"]
        parts += [f"epoch {self.epoch}" + (f" of {self.epochs}" if self.epochs else "")] if self.epoch else []
        parts += [f"pseudo Dice {self.dice:.3f}"] if math.isfinite(self.dice) else []
        parts += [f"{self.seconds:.1f} s per epoch"] if math.isfinite(self.seconds) else []
        parts += [f"{duration(self.left)} left"] if math.isfinite(self.left) and self.status == "running" else []
        return ", ".join(parts)


class Record:
    """What a step that was started by this package has noted about itself."""

    def __init__(self, folder: Path, step: str):
        name = step.replace("/", ".")
        self.path = folder / "records" / f"{name}.json"
        self.log = folder / "logs" / f"{name}.log"
        self.lock = folder / "locks" / f"{name}.lock"

    def read(self) -> dict[str, Any]:
        """Its content; empty where there is none."""
        try:
            content = read_json(self.path)
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def status(self) -> str:
        """``running``, ``succeeded``, ``failed``, ``interrupted``, or nothing where it was not begun."""
        content = self.read()
        if not content:
            return ""
        if "code" in content:
            return {0: "succeeded", None: "interrupted"}.get(content["code"], "failed")
        return "running" if _age(self.path) < 6 * BEAT else "interrupted"


def fold_state(model: str, fold: str, files: FoldFiles, record: Record | None = None) -> FoldState:
    """How far a fold is, now.

    Parameters
    ----------
    model, fold
        What to call it.
    files
        Its folder.
    record
        Of the step that trains it, if this package does.
    """
    logs = files.logs()
    epoch, dice, seconds = _progress(files.folder, tuple((log.name, log.stat().st_size) for log in logs))
    epochs = number_of_epochs(files.folder / "debug.json")
    ours = record.status() if record else ""
    newest = min(map(_age, logs), default=math.inf)
    # Something else than our step writes to the log: a training that was started by hand.
    by_hand = newest < max(QUIET, 3 * seconds if math.isfinite(seconds) else 0)
    by_hand &= record is None or not ours or newest < _age(record.path) - BEAT
    if files.complete():
        status = "done"
    elif ours == "running" or by_hand:
        status = "validating" if epochs is not None and epoch >= epochs else "running"
    elif ours == "failed":
        status = "failed"
    else:
        status = "interrupted" if logs or files.checkpoints() else "missing"
    return FoldState(model, fold, status, epoch, epochs, dice, seconds, record.log if record and ours else None)


def _age(path: Path) -> float:
    """Seconds since a file was written, or until then, where its date is in the future."""
    try:
        return abs(time.time() - path.stat().st_mtime)
    except FileNotFoundError:
        return math.inf


@lru_cache(maxsize=1024)
def _progress(folder: Path, logs: tuple[tuple[str, int], ...]) -> tuple[int, float, float]:
    """Finished epochs, pseudo Dice of the last one and recent seconds per epoch; read again when a log has grown."""
    if not logs:
        return 0, math.nan, math.nan
    try:
        training = read_training(folder)
    except (FileNotFoundError, ValueError):
        return 0, math.nan, math.nan
    hours = [0.0, *training["hours"].tolist()][-_RECENT - 1 :]
    seconds = 3600 * (hours[-1] - hours[0]) / (len(hours) - 1)
    return int(training["epoch"][-1]) + 1, float(training["mean_dice"][-1]), seconds


def table(states: Iterable[FoldState]) -> str:
    """A line a fold."""
    rows = [("model", "fold", "state", "epoch", "pseudo Dice", "s/epoch", "left")]
    for state in states:
        rows.append(
            (
                state.model,
                state.fold,
                state.status,
                f"{state.epoch}/{state.epochs or '?'}" if state.epoch or state.epochs else "",
                f"{state.dice:.3f}" if math.isfinite(state.dice) else "",
                f"{state.seconds:.1f}" if math.isfinite(state.seconds) else "",
                duration(state.left) if math.isfinite(state.left) and state.status == "running" else "",
            )
        )
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of a table as text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def duration(seconds: float) -> str:
    """Hours and minutes."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def read_configuration(folder: Path) -> Mapping[str, Any]:
    """The configuration of the last workflow in a folder of cross-validation; empty where there is none."""
    path = folder / "crossval.json"
    return read_json(path) if path.is_file() else {}


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
    configuration = read_configuration(results / "crossval")
    wanted: dict[str, tuple[str, list[str]]] = {}
    for name, entry in configuration.get("models", {}).items():
        wanted[entry["folder"]] = name, [str(fold) for fold in entry["folds"]]
    for model in find_models(dataset):
        name, planned = wanted.get(model.name, (model.name, []))
        begun = [*model.folds, *(["all"] if model.fold_folder("all") else [])]
        wanted[model.name] = name, list(dict.fromkeys([*planned, *begun]))
    if models:
        chosen = {folder: name for name, _, folder in (text.rpartition("=") for text in models)}
        unknown = [folder for folder in chosen if folder not in wanted]
        if unknown:
            raise ValueError(f"No model is called {unknown[0]}. There are: {', '.join(wanted) or 'none'}.")
        wanted = {folder: (name or wanted[folder][0], wanted[folder][1]) for folder, name in chosen.items()}
    if not wanted:
        raise FileNotFoundError(f"No training of {results.name} was begun.")
    steps = configuration.get("steps", {})
    states = []
    for folder, (name, known) in wanted.items():
        planned_name = next((n for n, e in configuration.get("models", {}).items() if e["folder"] == folder), None)
        for fold in sorted(folds or known, key=lambda fold: (not fold.isdecimal(), fold.zfill(4))):
            step = f"train/{planned_name}/fold_{fold}"
            files = FoldFiles(results / folder / f"fold_{fold}", steps.get(step, {}).get("probabilities", False))
            record = Record(results / "crossval", step) if step in steps else None
            states.append(fold_state(name, fold, files, record))
    return states
