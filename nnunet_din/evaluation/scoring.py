"""Scores cases in parallel, and remembers those that are done."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_din.data.integrity import check_file, check_labels
from nnunet_din.data.progress import progress
from nnunet_din.evaluation.collection import ScoredCase
from nnunet_din.evaluation.metrics import METRICS_VERSION, merit_metrics, structure_metrics
from nnunet_din.nnunet.labels import Labels

if TYPE_CHECKING:
    from pandas import DataFrame

_THICKNESS_OF_2D_IMAGES = 999
#: Largest relative difference in spacing, origin and direction, that of nnU-Net's integrity check; and in mm what
#: single precision in a NIfTI header may lose near 0.
_RELATIVE, _ABSOLUTE = 1e-5, 1e-4


def score_case(case: ScoredCase, labels: Labels, tolerances: Mapping[str, float], merit: bool = False) -> list[dict]:
    """Compute the metrics of every structure of a case.

    Parameters
    ----------
    case
        Prediction and truth, in any format that nnU-Net reads.
    labels
        Structures of the data set.
    tolerances
        Tolerance of NSD in mm by structure.
    merit
        Whether to add the metrics of the published 2-D comparisons.

    Returns
    -------
    list of dict
        What :func:`score_maps` returns.

    Raises
    ------
    ValueError
        If a file is not whole or cannot be read, holds a value that is no label, or prediction and truth differ in
        shape or place.
    """
    truth, place = read_placed(case.truth, labels, case.reader)
    prediction, predicted_place = read_placed(case.prediction, labels, case.reader)
    if prediction.shape != truth.shape:
        raise ValueError(
            f"{case.prediction} has shape {prediction.shape} and its truth {case.truth} has shape {truth.shape}: "
            "predict the original images, not resampled ones."
        )
    for what, value in place.items():
        if what in predicted_place and not np.allclose(value, predicted_place[what], rtol=_RELATIVE, atol=_ABSOLUTE):
            raise ValueError(
                f"{case.prediction} has the {what} {_text(predicted_place[what])} and its truth {case.truth} "
                f"{_text(value)}: the two do not lie in the same place. Predict the images that the truth was drawn on."
            )
    return score_maps(prediction, truth, {**predicted_place, **place}, labels, tolerances, merit)


def score_maps(
    prediction: np.ndarray,
    truth: np.ndarray,
    place: Mapping[str, Sequence[float]],
    labels: Labels,
    tolerances: Mapping[str, float],
    merit: bool = False,
) -> list[dict]:
    """Compute the metrics of every structure of two label maps.

    Parameters
    ----------
    prediction, truth
        Label maps of the same shape, ``(Z, Y, X)`` or ``(Y, X)``.
    place
        What :func:`read_placed` says of their place. Without ``spacing``, distances are in voxels.
    labels, tolerances, merit
        See :func:`score_case`.

    Returns
    -------
    list of dict
        One row a structure: ``structure``, and what :func:`nnunet_din.evaluation.metrics.structure_metrics` and, if
        asked for, :func:`nnunet_din.evaluation.metrics.merit_metrics` return.
    """
    spacing = place.get("spacing", [1.0] * truth.ndim)
    if labels.ignore is not None:
        prediction = np.where(truth == labels.ignore, 0, prediction)
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI calls its own deprecated functions
        for structure, values in labels.structures.items():
            masks = np.isin(prediction, values), np.isin(truth, values)
            metrics = structure_metrics(*masks, spacing, tolerances[structure])
            rows.append({"structure": structure, **metrics, **(merit_metrics(*masks) if merit else {})})
    return rows


def score_cases(
    cases: Sequence[ScoredCase],
    labels: Labels,
    tolerances: Mapping[str, float],
    cache: Path,
    merit: bool = False,
    processes: int = 1,
) -> tuple[DataFrame, list[ValueError]]:
    """Score cases in parallel.

    Parameters
    ----------
    cases, labels, tolerances
        See :func:`score_case`.
    cache
        File of the scores, see :class:`ScoreCache`. A case counts as scored if neither of its files and no setting has
        changed.
    merit
        See :func:`score_case`.
    processes
        Number of worker processes.

    Returns
    -------
    pandas.DataFrame
        A row for each structure of the cases that can be scored, in the order of ``cases``: ``model``, ``fold``,
        ``case`` and what :func:`score_case` returns.
    list of ValueError
        What is wrong with the others.

    Raises
    ------
    ValueError
        If a worker process was ended from outside. What was scored stays in the cache.
    """
    from pandas import DataFrame

    settings = describe_settings(labels) | {"tolerances": dict(tolerances), "merit": merit}
    keys = [json.dumps([_files(case), settings]) for case in cases]
    done, errors = ScoreCache(cache), []
    todo = {key: case for key, case in zip(keys, cases, strict=True) if key not in done}
    if reused := len(set(keys)) - len(todo):
        print(f"{reused} of {len(set(keys))} cases were scored before.", file=sys.stderr)
    score = partial(_scores_or_error, labels=labels, tolerances=tolerances, merit=merit)
    results = zip(todo, _in_processes(score, todo.values(), min(processes, len(todo))), strict=True)
    for key, rows in progress(results, total=len(todo), desc="scoring", unit="cases") if todo else ():
        if isinstance(rows, ValueError):
            errors.append(rows)
        else:
            done.add(key, rows)
    scored = []
    for key, case in zip(keys, cases, strict=True):
        names = {"model": case.model, "fold": case.fold, "case": case.case}
        # The same files may have been scored under other names, which earlier versions kept in the cache.
        scored += [{**names, **row, **names} for row in done.get(key, ())]
    return DataFrame(scored), errors


def _scores_or_error(case: ScoredCase, **settings: Any) -> list[dict] | ValueError:
    try:
        return score_case(case, **settings)
    except ValueError as error:
        return error


def _in_processes(function, items: Iterable, processes: int) -> Iterator:
    """Map a function over items, in order."""
    if processes <= 1:
        yield from map(function, items)
        return
    # Workers that are forked from a server which has loaded the libraries once; elsewhere each loads its own.
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload(["monai.metrics", "nnunetv2.imageio.reader_writer_registry", __name__])
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin_worker) as pool:
        try:
            yield from pool.map(function, items)
        except BrokenProcessPool as error:
            raise ValueError(
                "A worker process was ended from outside, perhaps for lack of memory. Start the command again with "
                "fewer processes (-np): it continues."
            ) from error


def _begin_worker() -> None:
    """Give a worker one thread, and let it end with the process that has started it, even if that is killed."""
    import torch

    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _text(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"


def read_placed(path: Path, labels: Labels, reader: str | None) -> tuple[np.ndarray, dict[str, Sequence[float]]]:
    """Label map, ``(Z, Y, X)``, or ``(Y, X)`` for a 2-D image, and what is known of its place.

    The place is the voxel size along the label map's axes in mm, ``spacing``, and origin and direction, or ``affine``.

    Raises
    ------
    ValueError
        If the file is not whole or cannot be read, or holds a value that is no label.
    """
    from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES
    from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

    check_file(path)
    kinds = [kind for kind in LIST_OF_IO_CLASSES if labels.file_ending.lower() in kind.supported_file_endings]
    reasons = []
    for kind in sorted(kinds, key=lambda kind: kind.__name__ != reader):
        try:
            with redirect_stdout(StringIO()):  # remarks for each file
                data, properties = kind().read_seg(str(path))
            if len(data) == 1:
                break
            reasons.append(f"it holds {len(data)} channels or volumes, and a label map is one")
        except Exception as error:  # readers raise of all kinds; another one may take what this one does not
            reasons.append(str(error))
    else:
        reason = reasons[0] if reasons else f"nnU-Net has no reader for {labels.file_ending}"
        raise ValueError(f"{path} cannot be read as a label map: {reason}")
    try:
        check_labels(data, labels.values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    label, spacing = data[0], [float(s) for s in properties["spacing"]]
    if issubclass(kind, Tiff3DIO) and not path.with_suffix(".json").is_file():
        return label, {}  # the reader takes 1 mm; nnU-Net leaves the file out of its copy of the truth
    # nnU-Net's readers give 2-D images one slice of 999 times the pixel's size.
    if label.shape[0] == 1 and spacing[0] >= _THICKNESS_OF_2D_IMAGES * max(spacing[1:]):
        return label[0], {"spacing": spacing[1:]}
    place: dict[str, Sequence[float]] = {"spacing": spacing}
    stuff = properties.get("sitk_stuff", {})
    place |= {what: stuff[what] for what in ("origin", "direction") if what in stuff}
    if "nibabel_stuff" in properties:
        place["affine"] = np.ravel(properties["nibabel_stuff"]["original_affine"]).tolist()
    return label, place


def describe_settings(labels: Labels) -> dict[str, Any]:
    """What scores depend on besides the files and the tolerances."""
    structures = {name: list(values) for name, values in labels.structures.items()}
    return {"metrics": METRICS_VERSION, "structures": structures, "ignore": labels.ignore}


def _files(case: ScoredCase) -> list[list]:
    """States of a case's files; those of TIFF volumes have their spacing in a file of its own."""
    pairs = [(path, path.with_suffix(".json")) for path in (case.prediction, case.truth)]
    return states(file for path, spacing in pairs for file in (path, *([spacing] if spacing.is_file() else [])))


def states(files: Iterable[Path]) -> list[list]:
    """Name, time and size of files, which tell whether they are the same as when something was made of them."""
    return [[str(file), file.stat().st_mtime_ns, file.stat().st_size] for file in files]


class ScoreCache(dict):
    """Rows of what has been scored, by what was scored, in memory and in a file.

    Parameters
    ----------
    path
        File to read, if it is there, and to add to.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
            try:
                key, rows = json.loads(line)
                self[str(key)] = [dict(row) for row in rows]
            except (TypeError, ValueError):  # cut off by an interruption, or damaged
                continue

    def add(self, key: str, rows: list[dict]) -> None:
        """Keep rows, in the file as well."""
        self[key] = rows
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, rows]) + "\n")
