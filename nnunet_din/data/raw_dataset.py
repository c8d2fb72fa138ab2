"""From the archive of a data set, as it was downloaded, to a raw nnU-Net data set.

A data set is described by one :class:`RawDataset`: where its files are, how they are split and how a case is written.
What all data sets share is here: checks, the folders of nnU-Net, `dataset.json`, `splits_final.json`, and that an
interrupted conversion can go on.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_din.data.files import write_text
from nnunet_din.data.progress import progress

__all__ = ["Case", "Conversion", "Found", "RawDataset", "Split", "convert", "locate", "pair_files", "plan_conversion"]

_NAMED = 5  # problems that a message names
_THREADS = 4


@dataclass(frozen=True)
class Case:
    """One image with its label.

    Attributes
    ----------
    name : str
        Name in the nnU-Net data set, without channel and file ending.
    image, label : pathlib.Path
        Files of the archive.
    group : str
        Patient or video sequence; the cases of one group are never split.
    """

    name: str
    image: Path
    label: Path
    group: str


@dataclass(frozen=True)
class Found:
    """What an archive holds.

    Attributes
    ----------
    cases : list of Case
        Cases with image and label, sorted by name.
    problems : list of str
        Each way in which this is not the whole official archive.
    notes : list of str
        What the user should know about it.
    """

    cases: list[Case]
    problems: list[str]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Split:
    """How the cases are split.

    Attributes
    ----------
    test : frozenset of str
        Names of the cases for `imagesTs`; all others are for training and validation.
    folds : list of dict
        Content of `splits_final.json`: for each fold the names of its cases, sorted, by "train" and "val".
    notes : list of str
        What the user should know about it.
    """

    test: frozenset[str]
    folds: list[dict[str, list[str]]]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RawDataset:
    """A data set that can be converted.

    Attributes
    ----------
    number : int
        Default number, 1 to 999.
    name : str
        The part `Name` of DatasetXXX_Name.
    channel_names : tuple of str
        Names of the channels as nnU-Net wants them: they decide about the normalization.
    labels : dict of str to int
        Names of the label values, background included.
    file_ending : str
        Ending of the images and labels that are written.
    reference, licence : str
        What `dataset.json` says about the origin of the data.
    find : callable
        Takes the source folder and returns :class:`Found`; raises FileNotFoundError if the layout is another one.
    split : callable
        Takes the cases and returns :class:`Split`.
    write : callable
        Takes a case and the files to write for its image and its label.
    reader : str, optional
        nnU-Net's reader, where the file ending alone does not tell it.
    """

    number: int
    name: str
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    file_ending: str
    reference: str
    licence: str
    find: Callable[[Path], Found]
    split: Callable[[Sequence[Case]], Split]
    write: Callable[[Case, Path, Path], None]
    reader: str | None = None


@dataclass(frozen=True)
class Conversion:
    """A conversion that was checked and can run.

    Attributes
    ----------
    dataset : RawDataset
        The data set that is converted.
    number : int
        Number of the nnU-Net data set.
    folder : pathlib.Path
        Folder DatasetXXX_Name.
    training, test : list of Case
        All cases, those that are written already included.
    missing : list of tuple
        Cases that are still to be written, each with "Tr" or "Ts".
    json_files : dict
        JSON files that are still to be written, with their content.
    notes : list of str
        What the user should know.
    """

    dataset: RawDataset
    number: int
    folder: Path
    training: list[Case]
    test: list[Case]
    missing: list[tuple[Case, str]]
    json_files: dict[Path, object]
    notes: list[str]


def locate(source: Path, places: Iterable[str], patterns: Iterable[str], layout: str) -> Path:
    """Find the folder of the files in or below the folder that the user gave.

    Parameters
    ----------
    source : pathlib.Path
        The folder that the user gave.
    places : iterable of str
        Folders below it to look in, "" for itself; the first that fits is taken.
    patterns : iterable of str
        Glob patterns; a folder fits if each matches something in it.
    layout : str
        The layout to expect, which the error message names.

    Returns
    -------
    pathlib.Path
        The first folder that fits.

    Raises
    ------
    FileNotFoundError
        If no folder fits.
    """
    patterns = list(patterns)
    for place in places:
        folder = source / place
        if all(next(folder.glob(pattern), None) for pattern in patterns):
            return folder
    raise FileNotFoundError(f"{source} does not have the layout of the official archive; expected {layout}.")


def pair_files(
    images: Mapping[str, Path], labels: Mapping[str, Path], expected: Iterable[str]
) -> tuple[list[str], list[str]]:
    """Compare the images and labels that are there with those that should be.

    Parameters
    ----------
    images, labels : mapping of str to pathlib.Path
        Files by the name of their case.
    expected : iterable of str
        Names of the cases of the official archive.

    Returns
    -------
    names : list of str
        Expected cases with image and label, sorted.
    problems : list of str
        Images without label, labels without image, cases that are missing and cases that should not be there.
    """
    expected = set(expected)
    both = images.keys() & labels.keys()
    absent = expected - images.keys() - labels.keys()
    problems = [
        *(f"no image and no label of {name}" for name in sorted(absent)),
        *(f"no image of {name}" for name in sorted(labels.keys() - images.keys())),
        *(f"no label of {name}" for name in sorted(images.keys() - labels.keys())),
        *(f"{name} does not belong there" for name in sorted(both - expected)),
    ]
    return sorted(both & expected), problems


def plan_conversion(
    dataset: RawDataset,
    source: Path,
    parent: Path | None = None,
    number: int | None = None,
    allow_incomplete: bool = False,
) -> Conversion:
    """Check the archive and what is in the target folder already; writes nothing.

    Parameters
    ----------
    dataset : RawDataset
        The data set to convert.
    source : pathlib.Path
        Folder of the unpacked archive.
    parent : pathlib.Path, optional
        Folder for DatasetXXX_Name. Default: the environment variable `nnUNet_raw`.
    number : int, optional
        Number of the data set, 1 to 999. Default: the data set's own.
    allow_incomplete : bool
        Convert what is there where cases are missing.

    Returns
    -------
    Conversion
        The conversion, which :func:`convert` carries out.

    Raises
    ------
    FileNotFoundError
        If `source` is not there or has another layout.
    ValueError
        If the archive is incomplete, the number is taken, no target folder is known, or the target folder holds
        something else.
    """
    number = dataset.number if number is None else number
    if not 1 <= number <= 999:
        raise ValueError(f"The number of a data set is 1 to 999, not {number}.")
    if parent is None:
        if not os.environ.get("nnUNet_raw"):
            raise ValueError("Set the environment variable nnUNet_raw, or name a folder with -o.")
        parent = Path(os.environ["nnUNet_raw"])
    if not source.is_dir():
        reason = "is a file; unpack it and give its folder" if source.exists() else "does not exist"
        raise FileNotFoundError(f"{source} {reason}.")
    name = f"Dataset{number:03d}_{dataset.name}"
    _refuse_taken_number(parent, name)

    found = dataset.find(source)
    notes = list(found.notes)
    if found.problems:
        problems = _enumerate(found.problems)
        if not allow_incomplete:
            raise ValueError(
                f"{source} is not the whole official archive: {problems}. Download what is missing, or convert what is "
                "there with --allow-incomplete."
            )
        notes.append(f"{len(found.cases)} cases are there, the archive is not the whole official one: {problems}.")
    split = dataset.split(found.cases)
    training = [case for case in found.cases if case.name not in split.test]
    test = [case for case in found.cases if case.name in split.test]

    folder = parent / name
    if parent.resolve() != Path(os.environ.get("nnUNet_raw", "")).resolve():
        notes.append(f"nnU-Net finds the data set when nnUNet_raw is set to {parent.resolve()}")
    files = {case.name: _files(dataset, folder, case, part) for part, case in _parts(training, test)}
    _refuse_other_files(folder, {path for pair in files.values() for path in pair})
    json_files: dict[Path, object] = {folder / "splits_final.json": split.folds}
    if preprocessed := os.environ.get("nnUNet_preprocessed"):
        json_files[Path(preprocessed) / name / "splits_final.json"] = split.folds
    else:
        notes.append(
            "nnUNet_preprocessed is not set: before training, copy splits_final.json to the folder "
            f"{name} there, where nnU-Net looks for it"
        )
    # Last: a folder with dataset.json is complete.
    json_files[folder / "dataset.json"] = _describe(dataset, len(training))
    return Conversion(
        dataset=dataset,
        number=number,
        folder=folder,
        training=training,
        test=test,
        missing=[
            (case, part) for part, case in _parts(training, test) if not all(path.exists() for path in files[case.name])
        ],
        json_files={path: content for path, content in json_files.items() if _is_missing(path, content)},
        notes=[*notes, *split.notes],
    )


def convert(conversion: Conversion) -> None:
    """Write what is missing; each file appears under its name when it is complete.

    Parameters
    ----------
    conversion : Conversion
        From :func:`plan_conversion`.

    Raises
    ------
    ValueError
        If an image or a label cannot be used; the message names the case. What was written stays, and a further run
        goes on from there.
    """
    dataset, folder = conversion.dataset, conversion.folder
    partial = folder / ".partial"
    if partial.exists():
        shutil.rmtree(partial)
    if conversion.missing:
        partial.mkdir(parents=True)
        # The work is done in libraries that let other threads run meanwhile.
        with (
            ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool,
            progress(total=len(conversion.missing), desc=folder.name, unit="cases") as bar,
        ):
            tasks = [pool.submit(_write_case, dataset, folder, case, part) for case, part in conversion.missing]
            try:
                for task in as_completed(tasks):
                    task.result()
                    bar.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    for path, content in conversion.json_files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(content, indent=2) + "\n")


def _write_case(dataset: RawDataset, folder: Path, case: Case, part: str) -> None:
    targets = _files(dataset, folder, case, part)
    temporary = [folder / ".partial" / path.name for path in targets]
    dataset.write(case, *temporary)
    for source, target in zip(temporary, targets, strict=True):
        target.parent.mkdir(exist_ok=True)
        source.replace(target)


def _files(dataset: RawDataset, folder: Path, case: Case, part: str) -> tuple[Path, Path]:
    """Return the paths of the image and the label of a case in the data set."""
    return (
        folder / f"images{part}" / f"{case.name}_0000{dataset.file_ending}",
        folder / f"labels{part}" / f"{case.name}{dataset.file_ending}",
    )


def _parts(training: Iterable[Case], test: Iterable[Case]) -> list[tuple[str, Case]]:
    return [*(("Tr", case) for case in training), *(("Ts", case) for case in test)]


def _describe(dataset: RawDataset, training: int) -> dict[str, object]:
    """Make the content of `dataset.json`."""
    description = {
        "name": dataset.name,
        "reference": dataset.reference,
        "licence": dataset.licence,
        "channel_names": {str(index): name for index, name in enumerate(dataset.channel_names)},
        "labels": dataset.labels,
        "numTraining": training,
        "file_ending": dataset.file_ending,
    }
    return description | ({"overwrite_image_reader_writer": dataset.reader} if dataset.reader else {})


def _enumerate(problems: Sequence[str]) -> str:
    more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
    return ", ".join(problems[:_NAMED]) + more


def _refuse_taken_number(parent: Path, name: str) -> None:
    """Refuse a number that another data set has: nnU-Net does not work with two of the same number."""
    variables = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    for place in {parent, *(Path(os.environ[variable]) for variable in variables if os.environ.get(variable))}:
        for other in place.glob(f"{name[:10]}_*"):
            if other.name != name:
                raise ValueError(f"{place} already holds {other.name}; choose another number than {name} with -d.")


def _refuse_other_files(folder: Path, wanted: set[Path]) -> None:
    """Refuse other files in the folders, which nnU-Net would take for cases."""
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        there = {path for path in (folder / name).glob("*") if not path.name.startswith(".")}
        other = sorted(there - wanted)
        if other:
            raise ValueError(
                f"{folder / name} holds {len(other)} files that are not of this conversion, the first is "
                f"{other[0].name}; remove {folder}, or choose another folder with -o or another number with -d."
            )


def _is_missing(path: Path, content: object) -> bool:
    """Whether a JSON file is to be written; a different one is never overwritten."""
    if not path.exists():
        return True
    try:
        same = json.loads(path.read_text(encoding="utf-8")) == content
    except ValueError:
        same = False
    if not same:
        raise ValueError(
            f"{path} exists with other content and is not overwritten; move it away if it is not needed any more."
        )
    return False
