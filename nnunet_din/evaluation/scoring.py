"""Scores many cases in parallel, and remembers those that are done."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_din.data.integrity import WrongLabel, check_file, check_labels
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
        Add the metrics of the published 2-D comparisons.

    Returns
    -------
    list of dict
        One row a structure: ``model``, ``fold``, ``case``, ``structure`` and what
        :func:`nnunet_din.evaluation.metrics.structure_metrics` gives.

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
    spacing = place.get("spacing") or predicted_place.get("spacing") or [1.0] * truth.ndim
    of_case = {"model": case.model, "fold": case.fold, "case": case.case}
    return [of_case | row for row in score_maps(prediction, truth, spacing, labels, tolerances, merit)]


def score_maps(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing: Sequence[float],
    labels: Labels,
    tolerances: Mapping[str, float],
    merit: bool = False,
) -> list[dict]:
    """Compute the metrics of every structure of two label maps.

    Parameters
    ----------
    prediction, truth
        Label maps of the same shape, ``(Z, Y, X)`` or ``(Y, X)``.
    spacing
        Voxel size along each axis in mm.
    labels, tolerances, merit
        See :func:`score_case`.

    Returns
    -------
    list of dict
        One row a structure: ``structure`` and the metrics.
    """
    if labels.ignore is not None:
        prediction = np.where(truth == labels.ignore, 0, prediction)
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI calls its own deprecated functions
        for structure, values in labels.structures.items():
            masks = np.isin(prediction, values), np.isin(truth, values)
            row: dict[str, object] = {"structure": structure}
            row |= structure_metrics(*masks, spacing, tolerances[structure])
            rows.append(row | (merit_metrics(*masks) if merit else {}))
    return rows


def score_cases(
    cases: Sequence[ScoredCase],
    labels: Labels,
    tolerances: Mapping[str, float],
    merit: bool = False,
    cache: Path | None = None,
    processes: int = 1,
    left_out: list[str] | None = None,
) -> DataFrame:
    """Score cases in parallel.

    Parameters
    ----------
    cases, labels, tolerances, merit
        See :func:`score_case`.
    cache
        File to which every finished case is added, and in which it is looked up before it is computed. A case counts
        as finished if neither of its files and no setting has changed.
    processes
        Number of worker processes.
    left_out
        List that takes a sentence for each case that cannot be scored; None: such a case is an error.

    Returns
    -------
    pandas.DataFrame
        The rows of all cases that can be scored, in the order of ``cases``.

    Raises
    ------
    ValueError
        If a case cannot be scored, or none can. The others that were computed stay in the cache.
    """
    from pandas import DataFrame

    settings = {
        "metrics": METRICS_VERSION,
        "structures": {name: list(values) for name, values in labels.structures.items()},
        "ignore": labels.ignore,
        "tolerances": dict(tolerances),
        "merit": merit,
    }
    keys = [_key(case, settings) for case in cases]
    done = remembered(cache)
    todo = {key: case for key, case in zip(keys, cases, strict=True) if key not in done}
    reused = len(set(keys)) - len(todo)
    if reused:
        print(f"{reused} of {len(set(keys))} cases were scored before.", file=sys.stderr)
    errors: list[ValueError] = []
    with progress(total=len(todo), desc="scoring", unit="cases") if todo else nullcontext() as bar:
        for key, rows in _compute(todo, labels, tolerances, merit, processes):
            if bar is not None:
                bar.update()
            if isinstance(rows, ValueError):
                errors.append(rows)
                continue
            done[key] = rows
            if cache:
                remember(cache, key, rows)
    if errors and (left_out is None or len(errors) == len(set(keys))):
        more = f" (and {len(errors) - 1} more cases cannot be scored)" if len(errors) > 1 else ""
        raise ValueError(f"{errors[0]}{more}") from errors[0]
    if left_out is not None:
        left_out += [str(error) for error in errors]
    # The cache holds no names: the same files may be scored under another one.
    scored = []
    for key, case in zip(keys, cases, strict=True):
        scored += [{**row, "model": case.model, "fold": case.fold, "case": case.case} for row in done.get(key, ())]
    return DataFrame(scored)


def _compute(todo: Mapping[str, ScoredCase], labels, tolerances, merit: bool, processes: int):
    """Yields (key, rows) as the cases are finished, or (key, error) where one cannot be scored."""
    if processes <= 1 or len(todo) <= 1:
        for key, case in todo.items():
            try:
                rows = score_case(case, labels, tolerances, merit)
            except ValueError as error:
                yield key, error
            else:
                yield key, rows
    else:
        # Workers that are forked from a server which has loaded the libraries once; elsewhere each loads its own.
        context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        if sys.platform == "linux":
            context.set_forkserver_preload(["monai.metrics", "nnunetv2.imageio.reader_writer_registry", __name__])
        with ProcessPoolExecutor(min(processes, len(todo)), mp_context=context, initializer=_begin_worker) as pool:
            futures = {pool.submit(score_case, case, labels, tolerances, merit): key for key, case in todo.items()}
            try:
                for future in as_completed(futures):
                    failure = future.exception()
                    if isinstance(failure, BrokenProcessPool):
                        raise ValueError(
                            "A worker process was ended from outside, perhaps for lack of memory. Start the command "
                            "again with fewer processes (-np): it continues."
                        ) from failure
                    if isinstance(failure, ValueError):
                        yield futures[future], failure
                    else:
                        yield futures[future], future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _begin_worker() -> None:
    """One thread for each worker, which ends with the process that has started it, even if that is killed."""
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


def _readers(name: str | None, file_ending: str) -> Iterator[type]:
    """nnU-Net's reader of this name, and those of this ending."""
    from nnunetv2.imageio import reader_writer_registry as registry

    if name:
        with suppress(RuntimeError):  # a reader that is not installed here
            yield registry.recursive_find_reader_writer_by_name(name)
    yield from (kind for kind in registry.LIST_OF_IO_CLASSES if file_ending.lower() in kind.supported_file_endings)


def read_placed(path: Path, labels: Labels, reader: str | None) -> tuple[np.ndarray, dict[str, Sequence[float]]]:
    """Label map, ``(Z, Y, X)``, or ``(Y, X)`` for a 2-D image, and what is known of its place.

    The place is the voxel size along the label map's axes in mm, ``spacing``, and origin and direction, or ``affine``.

    Raises
    ------
    ValueError
        If the file is not whole or cannot be read, or holds a value that is no label.
    """
    from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

    check_file(path)
    errors: list[Exception] = []
    for kind in _readers(reader, labels.file_ending):
        try:
            with redirect_stdout(StringIO()):  # remarks for each file
                data, properties = kind().read_seg(str(path))
            if len(data) == 1:
                break
            errors.append(ValueError(f"it holds {len(data)} channels or volumes, and a label map is one"))
        except Exception as error:  # readers raise of all kinds; another one may take what this one does not
            errors.append(error)
    else:
        reason = errors[0] if errors else f"nnU-Net has no reader for {labels.file_ending}"
        raise ValueError(f"{path} cannot be read as a label map: {reason}") from (errors[0] if errors else None)
    try:
        check_labels(data, labels.values)
    except WrongLabel as error:
        raise ValueError(f"{path}: {error}") from error
    if issubclass(kind, Tiff3DIO) and not path.with_suffix(".json").is_file():
        return data[0], {}  # the reader takes 1 mm; nnU-Net leaves the file out of its copy of the truth
    label, spacing = data[0], [float(s) for s in properties["spacing"]]
    # nnU-Net's readers give 2-D images one slice of 999 times the pixel's size.
    if label.shape[0] == 1 and spacing[0] >= _THICKNESS_OF_2D_IMAGES * max(spacing[1:]):
        return label[0], {"spacing": spacing[1:]}
    place: dict[str, Sequence[float]] = {"spacing": spacing}
    stuff = properties.get("sitk_stuff", {})
    place |= {what: stuff[what] for what in ("origin", "direction") if what in stuff}
    if "nibabel_stuff" in properties:
        place["affine"] = np.ravel(properties["nibabel_stuff"]["original_affine"]).tolist()
    return label, place


def _key(case: ScoredCase, settings: dict) -> str:
    files = []
    for path in (case.prediction, case.truth):
        # The second: the spacing of a TIFF volume.
        files += states(file for file in (path, path.with_suffix(".json")) if file is path or file.is_file())
    return json.dumps([files, settings])


def states(files: Iterable[Path]) -> list[list]:
    """Name, time and size of files, which tell whether they are the same as when something was made of them."""
    return [[str(file), file.stat().st_mtime_ns, file.stat().st_size] for file in files]


def remembered(cache: Path | None) -> dict[str, list[dict]]:
    """Rows of what has been scored, by what was scored; nothing without such a file."""
    done = {}
    if cache and cache.is_file():
        for line in cache.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                key, rows = json.loads(line)
                done[str(key)] = [dict(row) for row in rows]
            except (TypeError, ValueError):  # cut off by an interruption, or damaged
                continue
    return done


def remember(cache: Path, key: str, rows: Sequence[Mapping]) -> None:
    """Add what was scored to the file that :func:`remembered` reads; its folder is made if needed."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    with cache.open("a", encoding="utf-8") as file:
        file.write(json.dumps([key, rows]) + "\n")
